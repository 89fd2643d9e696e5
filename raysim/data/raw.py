"""Arguments and results of data set loaders, and the checks of a user's arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, refusing

Images = NDArray[Any]
"""`(rows, channels, height, width)`: unsigned bytes, or float32 where 1.0 stands for the brightest value."""

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a data set comes from: the `data` settings that a loader reads.

    Attributes:
        name: The name in the settings.
        root: Folder of its files, if it has any.
        download: Whether missing files may be fetched.
        resize: Height and width to which images of unequal size are resized; None: they must be equal.
    """

    name: str
    root: str | None = None
    download: bool = False
    resize: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RawImages:
    """A data set as it was read.

    Attributes:
        train_images: Training images.
        train_labels: Their classes, from 0.
        test_images: Test images.
        test_labels: Their classes.
        max_value: Value that stands for 1.0.
        train_users: Natural user of each training row, `(training rows,)`; None: the data set has no users.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    max_value: float = 255
    train_users: Labels | None = None


def refuse_unread(source: Source, root: bool = True) -> None:
    """Raise SettingError if `download`, or with `root` also a folder, is set for a data set without files."""
    if root and source.root is not None:
        raise SettingError(f"data.root={source.root!r} has no effect with data.name={source.name!r}; allowed: null")
    if source.download:
        raise SettingError(f"data.download=true has no effect with data.name={source.name!r}; allowed: false")


def from_arrays(name: str, arrays: Sequence[Any]) -> RawImages:
    """Check the arrays of a user's data set and convert them.

    Args:
        name: The data set's name, for the errors.
        arrays: Training images, training labels, test images, test labels and, if there are natural users, the
            user of each training row; they may be mapped into memory, and are never written to. Images are
            `(rows, channels, height, width)` or `(rows, height, width)`, bytes or floats in [0, 1]; labels and users
            are whole numbers from 0, `(rows,)`.

    Raises:
        SettingError: If an array has another form.
    """
    if len(arrays) not in (4, 5):
        raise SettingError(
            f"data.name={name!r} gives {len(arrays)} arrays; allowed: 4 (train_images, train_labels, test_images, "
            "test_labels), or 5 with train_users"
        )
    train, test = (_images(name, split, arrays[index]) for split, index in (("train", 0), ("test", 2)))
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise SettingError(
            f"data.name={name!r}: train_images are {train.dtype} {train.shape[1:]}, test_images {test.dtype} "
            f"{test.shape[1:]}; they must be alike"
        )
    labels = [
        _labels(name, split, arrays[index], len(images), len(train))
        for split, index, images in (("train", 1, train), ("test", 3, test))
    ]
    users = _whole_numbers(name, "train_users", arrays[4], len(train)) if len(arrays) == 5 else None
    max_value = 255 if train.dtype == np.uint8 else 1
    return RawImages(train, labels[0], test, labels[1], max_value, users)


def check_counts(name: str, raw: RawImages) -> None:
    """Raise SettingError if there is not one label for each image."""
    for split, images, labels in (
        ("train", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        if len(images) != len(labels) or not len(images):
            raise SettingError(
                f"data.name={name!r} has {len(images)} {split} images and {len(labels)} labels for them; allowed: "
                "one label for each image, and at least one image"
            )


def _array(name: str, what: str, given: Any) -> NDArray[Any]:
    """Return what a user gives as an array: itself, or a view of its memory."""
    with refusing(f"data.name={name!r}: {what} are no array"):
        return np.asarray(given)


def _images(name: str, split: str, given: Any) -> Images:
    images = _array(name, f"{split}_images", given)
    if images.ndim == 3:
        images = images[:, None]
    allowed = "allowed: (rows, channels, height, width) or (rows, height, width), unsigned bytes or floats"
    what = f"data.name={name!r}: {split}_images of {images.dtype} {images.shape}"
    if images.ndim != 4 or not images.size:
        raise SettingError(f"{what} are not allowed; {allowed}")
    if images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        raise SettingError(f"{what} seem to have their channels last; {allowed}")
    if images.dtype == np.uint8:
        if not images.flags.c_contiguous:
            memory.check_fits(f"data.name={name!r}: {split}_images", images.shape, images.size)
        return np.ascontiguousarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise SettingError(f"{what} are not allowed; {allowed}")
    is_ready = images.dtype == np.float32 and images.flags.c_contiguous
    memory.check_fits(f"data.name={name!r}: {split}_images", images.shape, images.size * (1 if is_ready else 5))
    with np.errstate(over="ignore"):
        images = np.ascontiguousarray(images, dtype=np.float32)
    if not np.isfinite(images).all():
        raise SettingError(f"{what} hold values that are not finite in float32")
    return images


def _labels(name: str, split: str, given: Any, rows: int, train_rows: int) -> Labels:
    """Return labels; every class up to the greatest needs a training row, so there are at most as many."""
    labels = _whole_numbers(name, f"{split}_labels", given, rows)
    if labels.max() >= train_rows:
        raise SettingError(
            f"data.name={name!r}: {split}_labels hold the class {labels.max()}, with {train_rows} training rows; "
            f"allowed: classes numbered from 0 without a gap, 0 to {train_rows - 1}"
        )
    return labels


def _whole_numbers(name: str, what: str, given: Any, rows: int) -> Labels:
    values = _array(name, what, given)
    is_whole = values.shape == (rows,) and np.issubdtype(values.dtype, np.integer)
    if not is_whole or values.min() < 0 or values.max() > np.iinfo(np.int64).max:
        found = f", {values.min()} to {values.max()}," if is_whole else ""
        raise SettingError(
            f"data.name={name!r}: {what} of {values.dtype} {values.shape}{found} are not allowed; "
            f"allowed: whole numbers from 0, ({rows},)"
        )
    return values.astype(np.int64)
