"""Read time series of several channels from a file of NumPy arrays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, nearest_first, refusing, shortened
from raysim.core.storage import user_files
from raysim.data.raw import RawData, Source, from_arrays

NAMES = ("train_inputs", "train_targets", "test_inputs", "test_targets")
USERS = "train_users"
COPIES = 4
"""Times that the arrays are in memory, at most, while they are read and scaled."""


def series(source: Source, normalize: bool = True) -> RawData:
    """Return the series in `data.root`, an `.npz` file without pickled objects.

    It holds `train_inputs` and `test_inputs`, numbers `(rows, channels, time)`, `train_targets` and `test_targets` of
    the task, and perhaps `train_users`, the natural user of each training row.

    Args:
        source: Names the file and the task.
        normalize: Whether each channel is scaled to mean 0 and deviation 1, over rows and time of the training rows.

    Raises:
        SettingError: If the file or an array has another form.
    """
    if source.download:
        raise SettingError("data.download=true has no effect with data.name='series'; allowed: false")
    if not isinstance(normalize, bool):
        raise SettingError(f"data.options.normalize={shortened(normalize)} is not allowed; allowed: true, false")
    arrays = _arrays(source)
    train, test = (_floats(source, name, arrays[name]) for name in ("train_inputs", "test_inputs"))
    given = [train, arrays["train_targets"], test, arrays["test_targets"], arrays.get(USERS)]
    raw = from_arrays(source.name, given, source.task, three_dims_are_images=False)
    if not normalize:
        return raw
    mean, deviation = _of_channels(train)
    return replace(
        raw,
        train_inputs=((train - mean) / deviation).astype(np.float32),
        test_inputs=((test - mean) / deviation).astype(np.float32),
    )


def _of_channels(train: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation of each channel, `(1, channels, 1)`; a constant channel has deviation 1."""
    mean = train.mean(axis=(0, 2), keepdims=True, dtype=np.float64)
    deviation = train.std(axis=(0, 2), keepdims=True, dtype=np.float64)
    return mean, np.where(deviation > 0, deviation, 1)


def _arrays(source: Source) -> dict[str, NDArray[np.generic]]:
    setting = f"data.root={source.root!r}"
    if source.root is None or Path(source.root).suffix != ".npz":
        raise SettingError(f"{setting} is not allowed with data.name='series'; allowed: an .npz file")
    user_files.check_zip(setting, source.root, memory.total_bytes() // COPIES)
    with refusing(f"{setting} cannot be read"), np.load(source.root, allow_pickle=False) as opened:
        found = {name: opened[name] for name in opened.files}
    if missing := [name for name in NAMES if name not in found]:
        raise SettingError(f"{setting} has no array {missing[0]!r}; allowed: {', '.join(NAMES)} and perhaps {USERS}")
    if unknown := [name for name in found if name not in (*NAMES, USERS)]:
        near = nearest_first(unknown[0], (*NAMES, USERS))[0]
        raise SettingError(f"{setting} has an array {unknown[0]!r}, which is not read; nearest: {near}")
    return found


def _floats(source: Source, name: str, array: NDArray[np.generic]) -> NDArray[np.float32]:
    is_real = np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
    if array.ndim != 3 or not is_real or not array.size:
        raise SettingError(
            f"data.root={source.root!r}: {name} of {array.dtype} {array.shape} are not allowed; allowed: numbers "
            "(rows, channels, time)"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
