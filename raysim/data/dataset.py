"""A user's own data: one split of a data set."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Rows of inputs and targets; a function named by `data.name` returns two, for training and test.

    Attributes:
        inputs: `(rows, ...)`, or several arrays by the names of the arguments of the model's forward. Whole numbers
            are token ids from 0; bytes `(rows, channels, height, width)` are images, and floats of that form are
            images with values in [0, 1], both normalised by `data.transform`; other floats stay as they are.
        targets: `(rows, ...)`; which form depends on `task.name`. Classes may be texts.
        users: Natural user of each row, a number or a text, `(rows,)`, for `data.partition.name: natural`; None:
            there are none. Only those of training rows are read.
    """

    inputs: Any
    targets: Any
    users: Any = None
