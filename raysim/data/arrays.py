"""Rows of one array, or of several arrays by name."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = NDArray[Any] | Mapping[str, NDArray[Any]]
"""`(rows, ...)`, or several arrays with as many rows each, by name."""


def each(function: Callable[[NDArray[Any]], Any], arrays: Arrays) -> Any:
    """Return what a function gives for the array, or for each by name."""
    if isinstance(arrays, np.ndarray):
        return function(arrays)
    return {name: function(array) for name, array in arrays.items()}


def leaves(arrays: Arrays) -> list[NDArray[Any]]:
    """Return the arrays, in the order of their names."""
    return [arrays] if isinstance(arrays, np.ndarray) else [arrays[name] for name in sorted(arrays)]


def num_rows(arrays: Arrays) -> int:
    """Return the number of rows."""
    return len(leaves(arrays)[0])
