"""Data sets that come with scikit-learn: scans of digits, patients, and masks made of the digits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory, seeding
from raysim.core.errors import SettingError, nearest_first, shortened
from raysim.data.columns import Column, inputs_of
from raysim.data.raw import RawData, Source, check_task, refuse_unread

CANVAS = 16
"""Height and width of an image of `digit-masks`, in pixels."""
SIZE = 8
"""Height and width of a scanned digit."""
INK = 4
"""Smallest value, of 0 to 16, of a pixel that belongs to a digit: a quarter of it was ink."""
MOST_DIGITS = 3
"""Largest number of digits that are tried on an image."""
CLASSES = ("digits", "ink")


def digits(source: Source) -> RawData:
    """Return scikit-learn's 1,797 real scans of digits, 8 x 8 pixels of 0 to 16, split 80 : 20 by class."""
    refuse_unread(source)
    images, labels, train, test = _scans()
    return RawData(images[train], labels[train], images[test], labels[test], max_value=16)


def digit_masks(source: Source, classes: str = "digits", train_rows: int = 1_000, test_rows: int = 200) -> RawData:
    """Return images of one to three scanned digits at random places, and a mask of each; always the same.

    An image has 16 x 16 pixels of 0 to 16, and digits do not overlap. Its mask, `(height, width)`, is 0 for the
    background and 1 + the digit where that has ink. Test images show scans of the test split of `digits`.

    Args:
        source: The `data` settings.
        classes: `digits`, 11 classes with the background, or `ink`, 2: every digit has class 1.
        train_rows: Number of training images.
        test_rows: Number of test images.

    Raises:
        SettingError: If an option is not allowed, or the task is another.
    """
    refuse_unread(source)
    check_task(source, "segmentation")
    if classes not in CLASSES:
        near = ", ".join(nearest_first(str(classes), CLASSES))
        raise SettingError(f"data.options.classes={shortened(classes)} is not allowed; allowed: {near}")
    for option, rows in (("train_rows", train_rows), ("test_rows", test_rows)):
        if type(rows) is not int or rows < 2:
            raise SettingError(
                f"data.options.{option}={shortened(rows)} is not allowed; allowed: a whole number from 2"
            )
        memory.check_fits(f"data.options.{option}", rows, 9 * CANVAS * CANVAS * rows)
    images, labels, train, test = _scans()
    made = [
        _canvases(images[scans, 0], labels[scans], rows, seeding.generator(0, f"digit-masks {split}"))
        for split, scans, rows in (("train", train, train_rows), ("test", test, test_rows))
    ]
    masks = [mask if classes == "digits" else np.minimum(mask, 1) for _, mask in made]
    return RawData(
        made[0][0], masks[0], made[1][0], masks[1], max_value=16, num_outputs=11 if classes == "digits" else 2
    )


def diabetes(source: Source) -> RawData:
    """Return 442 patients and how far their diabetes went in a year, split 80 : 20, for regression.

    The ten inputs are standardised by the training rows. The target is as it was measured, 25 to 346.

    Source: Efron et al. (2004), Least Angle Regression, by scikit-learn.
    """
    from sklearn.datasets import load_diabetes

    check_task(source, "regression")
    return _patients(source, load_diabetes(scaled=False), False)


def breast_cancer(source: Source) -> RawData:
    """Return 569 tumours, malignant or benign, split 80 : 20 by class; 30 measured inputs, standardised.

    Source: Wolberg et al. (1995), Breast Cancer Wisconsin (Diagnostic), by scikit-learn.
    """
    from sklearn.datasets import load_breast_cancer

    check_task(source, "classification")
    return _patients(source, load_breast_cancer(), True)


def _patients(source: Source, bunch: Any, has_classes: bool) -> RawData:
    refuse_unread(source)
    train, test = _split(len(bunch.target), bunch.target if has_classes else None)
    columns = {name: Column("numbers", bunch.data[:, index]) for index, name in enumerate(bunch.feature_names)}
    inputs = inputs_of(f"data.name={source.name!r}", columns, train).astype(np.float32)
    targets = bunch.target.astype(np.int64) if has_classes else bunch.target.astype(np.float32)[:, None]
    names = tuple(str(name) for name in bunch.target_names) if has_classes else ()
    return RawData(inputs[train], targets[train], inputs[test], targets[test], max_value=None, class_names=names)


def _scans() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all scans of digits, `(rows, 1, 8, 8)`, their classes, and the rows of the two splits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (
        bunch.images.astype(np.uint8)[:, None],
        bunch.target.astype(np.int64),
        *_split(len(bunch.target), bunch.target),
    )


def _split(rows: int, classes: NDArray[Any] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return training and test rows, 80 : 20, the same on every machine and for every seed."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(rows), test_size=0.2, stratify=classes, random_state=0)
    return train, test


def _canvases(
    scans: NDArray[np.uint8], labels: NDArray[np.int64], rows: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images `(rows, 1, 16, 16)` with digits at free places, and their masks `(rows, 16, 16)`."""
    images = np.zeros((rows, 1, CANVAS, CANVAS), np.uint8)
    masks = np.zeros((rows, CANVAS, CANVAS), np.int64)
    for image, mask in zip(images[:, 0], masks, strict=True):
        corners: list[tuple[int, int]] = []
        for scan in rng.integers(0, len(scans), rng.integers(1, MOST_DIGITS + 1)):
            free = [corner for corner in CORNERS if not any(_overlap(corner, other) for other in corners)]
            if not free:
                break
            top, left = free[rng.integers(0, len(free))]
            corners.append((top, left))
            place = slice(top, top + SIZE), slice(left, left + SIZE)
            image[place] = scans[scan]
            mask[place] = np.where(scans[scan] >= INK, 1 + labels[scan], 0)
    return images, masks


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] - other[0]) < SIZE and abs(one[1] - other[1]) < SIZE


CORNERS = [(top, left) for top in range(CANVAS - SIZE + 1) for left in range(CANVAS - SIZE + 1)]
"""Pixels at which a digit may begin."""
