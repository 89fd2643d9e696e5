"""Means and deviations over seeds, and per cent of a baseline seed by seed."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

LAST = 10
"""The primary accuracy is the mean of this many last evaluations (specification, section 4)."""


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation, None where there are too few values.

    >>> spread([1.0, 3.0]), spread([])
    ({'mean': 2.0, 'std': 1.4142135623730951}, {'mean': None, 'std': None})
    """
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def against(own: Mapping[int, float], base: Mapping[int, float]) -> dict[str, Any]:
    """Return the spread of values by seed, and their mean per cent of a baseline's, over the seeds of both.

    >>> against({0: 1.0, 1: 3.0, 2: 5.0}, {0: 2.0, 1: 4.0})
    {'mean': 3.0, 'std': 2.0, 'percent': 62.5, 'percent_seeds': [0, 1], 'is_all': False}
    """
    shared = sorted(seed for seed in own if base.get(seed))
    return {
        **spread(list(own.values())),
        "percent": 100 * statistics.fmean(own[seed] / base[seed] for seed in shared) if shared else None,
        "percent_seeds": shared,
        "is_all": len(shared) == len(own),
    }
