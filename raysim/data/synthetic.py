"""Make random images and labels for benchmarks: their content does not change how long training takes."""

import math
from collections.abc import Sequence

import numpy as np

from raysim.core import memory, seeding
from raysim.core.errors import SettingError, shortened
from raysim.data.raw import RawData, Source, refuse_unread


def noise(
    source: Source,
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    train_rows: int = 50_000,
    test_rows: int = 1_000,
) -> RawData:
    """Return random bytes as images, classes in turn; always the same, for benchmarks.

    Raises:
        SettingError: If an option is not a whole number from 1, or there are fewer rows than classes.
    """
    refuse_unread(source)
    numbers = {"shape": shape, "classes": classes, "train_rows": train_rows, "test_rows": test_rows}
    for name, value in numbers.items():
        each = value if name == "shape" and isinstance(value, (list, tuple)) and len(value) == 3 else [value]
        if not all(type(number) is int and number >= 1 for number in each):
            allowed = "three whole numbers from 1" if name == "shape" else "a whole number from 1"
            raise SettingError(f"data.options.{name}={shortened(value)} is not allowed; allowed: {allowed}")
    if min(train_rows, test_rows) < classes:
        raise SettingError(
            f"data.options.classes={classes} is not allowed with train_rows={train_rows} and test_rows={test_rows}; "
            f"allowed: 1 to {min(train_rows, test_rows)}"
        )
    memory.check_fits("data.options", numbers, (train_rows + test_rows) * (math.prod(shape) + 8))
    images = [
        seeding.generator(0, f"noise {split}").integers(0, 256, (rows, *shape), dtype=np.uint8)
        for split, rows in (("train", train_rows), ("test", test_rows))
    ]
    labels = [np.arange(rows) % classes for rows in (train_rows, test_rows)]
    return RawData(images[0], labels[0], images[1], labels[1])
