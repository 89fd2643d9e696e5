"""Kinds of targets: what a task compares outputs with, how they are checked, and how many outputs they need."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.core.errors import SettingError

IGNORED = -100
"""The target of a position that does not count, as in `torch.nn.functional.cross_entropy`."""

Targets = NDArray[np.int64] | NDArray[np.float32]
Convert = Callable[[NDArray[np.generic]], Targets | None]
"""Returns targets in the type that tasks compute with; None: they are not of this kind."""


@dataclass(frozen=True, slots=True)
class TargetKind:
    """Targets of one kind.

    Attributes:
        form: Their form, for messages.
        convert: Converts and checks the targets of a split.
        num_outputs: Returns how many outputs a row or position needs, from converted targets.
        has_classes: Whether each row has one class, by which rows can be stratified and divided.
    """

    form: str
    convert: Convert
    num_outputs: Callable[[Targets], int]
    has_classes: bool = False


def converted(kind: TargetKind, given: NDArray[np.generic], what: str, task: str) -> Targets:
    """Return the targets of a split.

    Raises:
        SettingError: If they are not of this kind.
    """
    found = kind.convert(given)
    if found is None:
        fitting = ", ".join(other for other, each in KINDS.items() if each.convert(given) is not None) or "none"
        raise SettingError(
            f"{what} of {given.dtype} {given.shape} are not allowed with task.name={task!r}; allowed: {kind.form}; "
            f"tasks that fit: {fitting}"
        )
    return found


def _classes(given: NDArray[np.generic]) -> Targets | None:
    is_whole = given.ndim == 1 and np.issubdtype(given.dtype, np.integer)
    return given.astype(np.int64, copy=False) if is_whole and given.min(initial=0) >= 0 else None


def _labels(given: NDArray[np.generic]) -> Targets | None:
    is_number = np.issubdtype(given.dtype, np.number) or given.dtype == np.bool_
    if given.ndim != 2 or not is_number or not np.isin(given, (0, 1)).all():
        return None
    return given.astype(np.float32, copy=False)


def _numbers(given: NDArray[np.generic]) -> Targets | None:
    is_real = np.issubdtype(given.dtype, np.integer) or np.issubdtype(given.dtype, np.floating)
    if given.ndim not in (1, 2) or not is_real:
        return None
    values = given.astype(np.float32, copy=False).reshape(len(given), -1)
    return values if np.isfinite(values).all() else None


def _positions(dimensions: int) -> Convert:
    def convert(given: NDArray[np.generic]) -> Targets | None:
        if given.ndim != dimensions or not np.issubdtype(given.dtype, np.integer):
            return None
        values = given.astype(np.int64, copy=False)
        return values if ((values >= 0) | (values == IGNORED)).all() and (values >= 0).any() else None

    return convert


def _largest(targets: Targets) -> int:
    return int(targets.max()) + 1


def _columns(targets: Targets) -> int:
    return int(targets.shape[1])


TOKENS = TargetKind(
    f"whole numbers from 0, or {IGNORED} where a position does not count, (rows, time)",
    _positions(2),
    _largest,
)

KINDS: dict[str, TargetKind] = {
    "classification": TargetKind("whole numbers from 0 or texts, (rows,)", _classes, _largest, has_classes=True),
    "multilabel": TargetKind("0 and 1, (rows, labels)", _labels, _columns),
    "regression": TargetKind("finite numbers, (rows,) or (rows, numbers)", _numbers, _columns),
    "next-token": TOKENS,
    "token-classification": TOKENS,
    "segmentation": TargetKind(
        f"whole numbers from 0, or {IGNORED} where a pixel does not count, (rows, height, width)",
        _positions(3),
        _largest,
    ),
}
"""The targets of each task, by its name."""
