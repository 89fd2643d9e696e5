"""Means and deviations over seeds, and per cent of a baseline seed by seed."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raysim.config.metric import ACCURACY, PrimaryMetric

LAST = 10
"""Evaluations of which a run's last score is the mean, where it has at least twice as many."""
ABOVE_CHANCE = 0.1
"""Least share of the way from chance to 1 that an automatic target has."""
LEVEL = 0.95
"""Confidence of an interval."""


def last_mean(scores: Sequence[float]) -> float | None:
    """Return the mean of the last evaluations; None: there are too few, the mean would be of half the run.

    >>> last_mean([0.5] * 10 + [0.9] * 10), last_mean([0.9] * 19)
    (0.9, None)
    """
    return statistics.fmean(scores[-LAST:]) if len(scores) >= 2 * LAST else None


def paired(own: Mapping[int, float], base: Mapping[int, float], scale: float = 100) -> dict[str, Any]:
    """Return the mean difference of scores by seed over the seeds of both, in points, with its t-interval.

    Args:
        own: The scores of a row.
        base: Those of the row that it is compared with.
        scale: Factor of differences: 100 for shares, 1 for other numbers.

    >>> paired({0: 0.75, 1: 0.5, 2: 0.9}, {0: 0.5, 1: 0.25})["points"]
    25.0
    """
    shared = sorted(own.keys() & base.keys())
    differences = [scale * (own[seed] - base[seed]) for seed in shared]
    low, high = t_interval(differences)
    return {
        "points": statistics.fmean(differences) if shared else None,
        "points_low": low,
        "points_high": high,
        "points_seeds": shared,
        "points_are_all": own.keys() <= base.keys(),
    }


def t_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the interval of Student's t for the mean of some values; None for less than two.

    >>> [round(bound, 3) for bound in t_interval([1.0, 2.0, 3.0])], t_interval([1.0])
    ([-0.484, 4.484], (None, None))
    """
    if len(values) < 2:
        return None, None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    if not deviation:
        return mean, mean
    from scipy import stats  # takes a while to import, and most commands need no interval

    low, high = stats.t.interval(LEVEL, len(values) - 1, mean, deviation / len(values) ** 0.5)
    return float(low), float(high)


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


def default_target(
    scores: Sequence[float], num_classes: int | None, metric: PrimaryMetric = ACCURACY
) -> float | None:
    """Return a target that a baseline's runs have almost reached; None if a guess reaches it, too.

    Of a share that should go up it is 95 % of theirs, rounded down to a per cent; of another number that should go up
    95 %, and of one that should go down 1 / 0.95 of it, with three digits.

    Args:
        scores: The score that leads the table, one per run.
        num_classes: The classes of the data, of which a guess is right in one of so many cases. None: not known.
        metric: The metric; only of the accuracy is known what a guess reaches.

    >>> default_target([0.9, 0.8], 10), default_target([0.15, 0.2], 10), default_target([0.58], 2)
    (0.8, None, 0.55)
    >>> default_target([2.0, 1.8], None, PrimaryMetric("rmse", "down", 0, float("inf")))
    2.0
    """
    if not scores:
        return None
    mean = statistics.fmean(scores)
    if not (metric.is_share and metric.direction == "up"):
        target = float(f"{0.95 * mean if metric.direction == 'up' else mean / 0.95:.3g}")
        return target if mean > 0 and metric.allows(target) and metric.reaches(mean, target) else None
    target = int(95 * mean + 1e-9) / 100
    chance = 1 / num_classes if num_classes and metric == ACCURACY else 0.0
    return target if target and target >= chance + ABOVE_CHANCE * (1 - chance) - 1e-9 else None
