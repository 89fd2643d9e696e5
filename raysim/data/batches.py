"""Cut a client's rows into batches."""

import numpy as np
from numpy.typing import NDArray


def batch_slices(num_examples: int, batch_size: int) -> list[slice]:
    """Cut rows into batches; a last batch of one joins the one before, since BatchNorm cannot train on it.

    >>> batch_slices(7, 3)
    [slice(0, 3, None), slice(3, 7, None)]
    """
    starts = list(range(0, num_examples, batch_size))
    if len(starts) > 1 and num_examples - starts[-1] == 1 < batch_size:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], num_examples], strict=True)]


def num_batches(num_examples: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Return how many batches each of several clients trains in an epoch.

    >>> num_batches(np.array([1, 6, 7, 8]), 3).tolist()
    [1, 2, 2, 3]
    """
    return -(-num_examples // batch_size) - _joins(num_examples, batch_size)


def largest_batch(num_examples: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Return the rows of each client's largest batch.

    >>> largest_batch(np.array([1, 6, 7, 8]), 3).tolist()
    [1, 3, 4, 3]
    """
    return np.minimum(num_examples, batch_size) + _joins(num_examples, batch_size)


def _joins(num_examples: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Return 1 where a last batch of one row joins the one before, else 0."""
    joins = (num_examples > batch_size) & (num_examples % batch_size == 1) & (batch_size > 1)
    return np.asarray(joins, dtype=np.int64)
