"""Arguments and results of data set loaders, and the checks of a user's arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, refusing
from raysim.data.arrays import Arrays, leaves, num_rows
from raysim.task.targets import KINDS, Targets, converted

Images = NDArray[Any]
"""`(rows, channels, height, width)`: unsigned bytes, or float32 where 1.0 stands for the brightest value."""

Users = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a data set comes from: the `data` settings that a loader reads.

    Attributes:
        name: The name in the settings.
        root: Folder of its files, if it has any.
        download: Whether missing files may be fetched.
        resize: Height and width to which images of unequal size are resized; None: they must be equal.
        task: Name of the task, which decides what targets are.
        seed: Seed of the split, for a data set that comes without test rows.
    """

    name: str
    root: str | None = None
    download: bool = False
    resize: int | None = None
    task: str = "classification"
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RawData:
    """A data set as it was read.

    Attributes:
        train_inputs: Training inputs, `(rows, ...)`, or several arrays by name.
        train_targets: Their targets, `(rows, ...)`.
        test_inputs: Test inputs.
        test_targets: Their targets.
        max_value: Value of images that stands for 1.0; None: the inputs are no images.
        train_users: Natural user of each training row, numbered from 0, `(training rows,)`; None: there are none.
        num_outputs: Outputs that a row or position needs, such as the words of a vocabulary; classes may then be
            without a row. None: what targets need, and every class needs a row in both splits.
        vocabulary: Number of token ids of integer inputs; None: one more than the largest.
        class_names: Names of the classes; empty: they are numbers.
    """

    train_inputs: Arrays
    train_targets: NDArray[Any]
    test_inputs: Arrays
    test_targets: NDArray[Any]
    max_value: float | None = 255
    train_users: Users | None = None
    num_outputs: int | None = None
    vocabulary: int | None = None
    class_names: tuple[str, ...] = ()


def images_of(raw: RawData) -> tuple[Images, Images, float]:
    """Return training images, test images, and the value that stands for 1.0, of a data set of images."""
    return cast("Images", raw.train_inputs), cast("Images", raw.test_inputs), cast("float", raw.max_value)


def refuse_unread(source: Source, root: bool = True) -> None:
    """Raise SettingError if `download`, or with `root` also a folder, is set for a data set without files."""
    if root and source.root is not None:
        raise SettingError(f"data.root={source.root!r} has no effect with data.name={source.name!r}; allowed: null")
    if source.download:
        raise SettingError(f"data.download=true has no effect with data.name={source.name!r}; allowed: false")


def check_task(source: Source, *allowed: str) -> None:
    """Raise SettingError if a data set has no targets for the task."""
    if source.task not in allowed:
        raise SettingError(
            f"task.name={source.task!r} is not allowed with data.name={source.name!r}; allowed: {', '.join(allowed)}"
        )


def from_arrays(
    name: str, arrays: Sequence[Any], task: str = "classification", three_dims_are_images: bool = True
) -> RawData:
    """Check the arrays of a user's data set and convert them.

    Args:
        name: The data set's name, for the errors.
        arrays: Training inputs, training targets, test inputs, test targets and, if there are natural users, the
            user of each training row, a number or a text; they may be mapped into memory, and are never written to.
            Inputs are one array, or several by name: images `(rows, channels, height, width)`, bytes or floats in
            [0, 1]; token ids, whole numbers from 0, `(rows, time)`; or floats `(rows, ...)`.
        task: Name of the task, which decides what targets are.
        three_dims_are_images: Whether an array `(rows, height, width)` holds grey images.

    Raises:
        SettingError: If an array has another form.
    """
    if len(arrays) not in (4, 5):
        raise SettingError(
            f"data.name={name!r} gives {len(arrays)} arrays; allowed: 4 (train_inputs, train_targets, test_inputs, "
            "test_targets), or 5 with train_users"
        )
    train, test = (
        _inputs(name, split, arrays[index], three_dims_are_images) for split, index in (("train", 0), ("test", 2))
    )
    _check_alike(name, train, test)
    found = [_array(name, f"{split}_targets", arrays[index]) for split, index in (("train", 1), ("test", 3))]
    found, class_names = _without_texts(found) if task == "classification" else (found, ())
    targets = [
        _targets(name, split, given, num_rows(inputs), task, num_rows(train))
        for split, given, inputs in (("train", found[0], train), ("test", found[1], test))
    ]
    users = _users(name, arrays[4], num_rows(train)) if len(arrays) == 5 and arrays[4] is not None else None
    return RawData(train, targets[0], test, targets[1], _max_value(train), users, class_names=class_names)


def check_counts(name: str, raw: RawData) -> None:
    """Raise SettingError if there is not one target for each input."""
    for split, inputs, targets in (
        ("train", raw.train_inputs, raw.train_targets),
        ("test", raw.test_inputs, raw.test_targets),
    ):
        if num_rows(inputs) != len(targets) or not len(targets):
            raise SettingError(
                f"data.name={name!r} has {num_rows(inputs)} {split} inputs and {len(targets)} targets for them; "
                "allowed: one target for each input, and at least one input"
            )


def _array(name: str, what: str, given: Any) -> NDArray[Any]:
    """Return what a user gives as an array: itself, or a view of its memory."""
    with refusing(f"data.name={name!r}: {what} are no array"):
        return np.asarray(given)


def _inputs(name: str, split: str, given: Any, three_dims_are_images: bool) -> Arrays:
    what = f"{split}_inputs"
    if not isinstance(given, Mapping):
        return _input(name, what, _array(name, what, given), three_dims_are_images)
    if not given or not all(isinstance(key, str) and key.isidentifier() for key in given):
        raise SettingError(
            f"data.name={name!r}: {what} have the names {[*given]!r}; allowed: arrays by the names of the arguments "
            "of the model's forward"
        )
    arrays = {
        key: _input(name, f"{what}[{key!r}]", _array(name, f"{what}[{key!r}]", each), False)
        for key, each in given.items()
    }
    rows = {key: len(array) for key, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise SettingError(f"data.name={name!r}: {what} have {rows} rows; allowed: as many in each array")
    return arrays


def _input(name: str, what: str, array: NDArray[Any], three_dims_are_images: bool) -> NDArray[Any]:
    is_float = np.issubdtype(array.dtype, np.floating)
    if array.ndim == 3 and three_dims_are_images:
        array = array[:, None]
    if array.ndim == 4 and (array.dtype == np.uint8 or not (is_float or array.dtype == np.bool_)):
        return _images(name, what, array)
    if is_float:
        return _images(name, what, array) if array.ndim == 4 else _floats(name, what, array)
    shown = f"data.name={name!r}: {what} of {array.dtype} {array.shape}"
    if not np.issubdtype(array.dtype, np.integer) or array.ndim < 2 or not array.size:
        raise SettingError(
            f"{shown} are not allowed; allowed: images, unsigned bytes or floats (rows, channels, height, width); "
            "token ids, whole numbers (rows, time), padded where they are of unequal length; floats (rows, ...)"
        )
    if array.min() < 0 or array.max() > np.iinfo(np.int64).max:
        raise SettingError(f"{shown} hold {array.min()} to {array.max()}; allowed: token ids from 0")
    memory.check_fits(f"data.name={name!r}: {what}", array.shape, array.size * 8)
    return np.ascontiguousarray(array, dtype=np.int64)


def _images(name: str, what: str, images: NDArray[Any]) -> Images:
    allowed = "allowed: (rows, channels, height, width) or (rows, height, width), unsigned bytes or floats"
    shown = f"data.name={name!r}: {what} of {images.dtype} {images.shape}"
    if not images.size:
        raise SettingError(f"{shown} are not allowed; {allowed}")
    if images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        raise SettingError(f"{shown} seem to have their channels last; {allowed}")
    if images.dtype == np.uint8:
        if not images.flags.c_contiguous:
            memory.check_fits(f"data.name={name!r}: {what}", images.shape, images.size)
        return np.ascontiguousarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise SettingError(f"{shown} are not allowed; {allowed}")
    return _floats(name, what, images)


def _floats(name: str, what: str, array: NDArray[Any]) -> NDArray[np.float32]:
    shown = f"data.name={name!r}: {what} of {array.dtype} {array.shape}"
    if array.ndim < 2 or not array.size:
        raise SettingError(f"{shown} are not allowed; allowed: floats (rows, ...)")
    is_ready = array.dtype == np.float32 and array.flags.c_contiguous
    memory.check_fits(f"data.name={name!r}: {what}", array.shape, array.size * (1 if is_ready else 5))
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise SettingError(f"{shown} hold values that are not finite in float32")
    return array


def _check_alike(name: str, train: Arrays, test: Arrays) -> None:
    forms = []
    for arrays in (train, test):
        named = arrays if isinstance(arrays, Mapping) else {"": arrays}
        forms.append({key: (str(array.dtype), array.shape[1:]) for key, array in named.items()})
    if forms[0] != forms[1]:
        shown = [
            ", ".join(f"{key} {dtype} {shape}".strip() for key, (dtype, shape) in form.items()) for form in forms
        ]
        raise SettingError(
            f"data.name={name!r}: train_inputs are {shown[0]}, test_inputs {shown[1]}; they must be alike"
        )


def _max_value(inputs: Arrays) -> float | None:
    """Return the value that stands for 1.0 in images; None: the inputs are no images, or several arrays."""
    if isinstance(inputs, Mapping) or inputs.ndim != 4:
        return None
    return 255 if inputs.dtype == np.uint8 else 1


def _without_texts(targets: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Return targets with texts replaced by class numbers, in the order of the texts, and the classes' names."""
    if not all(_are_texts(each) for each in targets):
        return targets, ()
    names, numbers = np.unique(np.concatenate([each.astype(str) for each in targets]), return_inverse=True)
    return np.split(numbers.astype(np.int64), [len(targets[0])]), tuple(names.tolist())


def _are_texts(values: NDArray[Any]) -> bool:
    return values.ndim == 1 and (
        values.dtype.kind == "U" or (values.dtype == object and all(isinstance(each, str) for each in values))
    )


def _targets(name: str, split: str, given: NDArray[Any], rows: int, task: str, train_rows: int) -> Targets:
    what = f"data.name={name!r}: {split}_targets"
    if KINDS[task].has_classes:
        return _labels(name, split, given, rows, train_rows)
    if given.ndim == 0 or len(given) != rows:
        raise SettingError(
            f"{what} of {given.dtype} {given.shape} are not allowed with {rows} inputs; allowed: {rows}"
        )
    return converted(KINDS[task], given, what, task)


def _labels(name: str, split: str, given: NDArray[Any], rows: int, train_rows: int) -> Targets:
    """Return labels; every class up to the greatest needs a training row, so there are at most as many."""
    labels = _whole_numbers(name, f"{split}_targets", given, rows)
    if labels.max() >= train_rows:
        raise SettingError(
            f"data.name={name!r}: {split}_targets hold the class {labels.max()}, with {train_rows} training rows; "
            f"allowed: classes numbered from 0 without a gap, 0 to {train_rows - 1}"
        )
    return labels


def _users(name: str, given: Any, rows: int) -> Users:
    users = _array(name, "train_users", given)
    if _are_texts(users) and users.shape == (rows,):
        return np.unique(users.astype(str), return_inverse=True)[1].astype(np.int64)
    return _whole_numbers(name, "train_users", users, rows)


def _whole_numbers(name: str, what: str, values: NDArray[Any], rows: int) -> NDArray[np.int64]:
    is_whole = values.shape == (rows,) and np.issubdtype(values.dtype, np.integer)
    if not is_whole or values.min() < 0 or values.max() > np.iinfo(np.int64).max:
        found = f", {values.min()} to {values.max()}," if is_whole else ""
        raise SettingError(
            f"data.name={name!r}: {what} of {values.dtype} {values.shape}{found} are not allowed; "
            f"allowed: whole numbers from 0 or texts, ({rows},)"
        )
    return values.astype(np.int64)


def largest_token(inputs: Arrays) -> int | None:
    """Return the largest token id of integer inputs; None: there are none."""
    tokens = [array for array in leaves(inputs) if array.dtype == np.int64 and array.size]
    return max((int(array.max()) for array in tokens), default=None)
