"""What a comparison's rows reached and spent: means over seeds, per cent of a baseline, costs of targets, fronts."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysim.analysis.comparison import curves
from raysim.analysis.comparison.curves import Curve
from raysim.analysis.comparison.rows import Row
from raysim.analysis.comparison.run_record import RunRecord
from raysim.analysis.study.one_run import LAST
from raysim.core.tensors import Columns

Figures = dict[str, float]
"""What one run reached and spent, by name."""
ACCURACIES = ("accuracy_last10", "accuracy", "best_accuracy")
SPENT = ("megabytes", "simulated_s", "energy_j")
"""What accuracy is weighed against, in the order of the table's columns."""
AVERAGED = (*ACCURACIES, "pruning_ratio", *SPENT, "gigaflops", "rounds")


def figures_of(rounds: Columns) -> Figures:
    """Return what a run reached and spent up to its last recorded round; what is not known is left out."""
    if not rounds:
        return {}
    accuracies = curves.curve_of(rounds).accuracy.tolist()
    found = {
        "rounds": float(len(rounds["round"])), "megabytes": float(rounds["bytes"][-1]) / 1e6,
        "simulated_s": float(rounds["simulated_s"][-1]),
    }  # fmt: skip
    if rounds["energy_j"][-1] > 0:  # devices without power use have spent none that was counted
        found["energy_j"] = float(rounds["energy_j"][-1])
    if "train_flops" in rounds:
        found["gigaflops"] = float(rounds["train_flops"][-1]) / 1e9
    if "pruning_ratio/mean" in rounds:
        ratios, counted = rounds["pruning_ratio/mean"], rounds["clients/counted"]
        known = ~np.isnan(ratios) & (counted > 0)
        if known.any():
            found["pruning_ratio"] = float(np.average(ratios[known], weights=counted[known]))
    if accuracies:
        last = accuracies[-LAST:]
        found |= {
            "accuracy_last10": statistics.fmean(last), "accuracy": accuracies[-1], "best_accuracy": max(accuracies),
        }  # fmt: skip
    return found


def default_target(figures: Sequence[Figures]) -> float | None:
    """Return 95 % of what a baseline's runs reached, rounded down to a per cent; None if that is nothing.

    >>> default_target([{"accuracy_last10": 0.9}, {"accuracy_last10": 0.8}])
    0.8
    """
    known = [each["accuracy_last10"] for each in figures if "accuracy_last10" in each]
    target = int(95 * statistics.fmean(known) + 1e-9) / 100 if known else 0.0
    return target or None


def table_of(rows: Sequence[Row], baseline: Row, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Return all figures of each row, ready for JSON."""
    by_row = {id(row): _Measured(row, targets) for row in rows}
    table = [_figures(by_row[id(row)], by_row[id(baseline)], targets) for row in rows]
    for name in weighed(table):
        for place in front([_point(each, name) for each in table]):
            table[place]["fronts"].append(name)
    return table


def weighed(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the costs that accuracy is weighed against: those of more than one row."""
    return [name for name in SPENT if sum(has_both(row, name) for row in table) > 1]


def has_both(row: Mapping[str, Any], cost: str) -> bool:
    """Whether a row has an accuracy and a cost."""
    return row[cost]["mean"] is not None and row["accuracy_last10"]["mean"] is not None


class _Measured:
    """The figures of a row's runs, by seed."""

    def __init__(self, row: Row, targets: Sequence[float]) -> None:
        self.row = row
        self.figures = {run.settings.seed: figures_of(run.rounds) for run in row.counted}
        self.costs = {target: self._costs(row.counted, target) for target in targets}

    def _costs(self, runs: Sequence[RunRecord], target: float) -> dict[int, dict[str, float]]:
        """Return what the target cost each run that reached it, of what was counted."""
        spent = {run.settings.seed: curves.curve_of(run.rounds).cost_of(target) for run in runs}
        return {
            seed: {name: cost for name, cost in costs.items() if cost is not None and name in self.figures[seed]}
            for seed, costs in spent.items()
            if costs["rounds"] is not None
        }

    def of(self, name: str) -> dict[int, float]:
        """Return a figure by seed."""
        return {seed: figures[name] for seed, figures in self.figures.items() if name in figures}


def _figures(own: _Measured, base: _Measured, targets: Sequence[float]) -> dict[str, Any]:
    row = own.row
    return {
        "label": row.label, "method": row.method, "settings": dict(row.settings),
        "other_settings": dict(row.other_settings), "seeds": row.seeds, "counted": len(row.counted),
        "is_whole": row.is_whole, "runs": [run.name for run in row.runs], "states": [run.state for run in row.runs],
        **{name: against(own.of(name), base.of(name)) for name in AVERAGED},
        **_points(own.of("accuracy_last10"), base.of("accuracy_last10")),
        "targets": [_target(target, own, base) for target in targets],
        "fronts": [],
    }  # fmt: skip


def _target(target: float, own: _Measured, base: _Measured) -> dict[str, Any]:
    """Return what a target cost the runs of a row that reached it."""
    costs, others = own.costs[target], base.costs[target]
    found: dict[str, Any] = {"accuracy": target, "reached": len(costs), "of": len(own.row.counted)}
    for name in ("rounds", *SPENT):
        mine = {seed: cost[name] for seed, cost in costs.items() if name in cost}
        theirs = {seed: cost[name] for seed, cost in others.items() if name in cost}
        found[name] = against(mine, theirs)
    return found


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
    """Return mean and spread of figures by seed, and their per cent of a baseline's, of the seeds that both have.

    >>> against({0: 1.0, 1: 3.0, 2: 5.0}, {0: 2.0, 1: 4.0})
    {'mean': 3.0, 'std': 2.0, 'percent': 62.5, 'percent_seeds': [0, 1], 'is_all': False}
    """
    shared = sorted(seed for seed in own if base.get(seed))
    return spread(list(own.values())) | {
        "percent": 100 * statistics.fmean(own[seed] / base[seed] for seed in shared) if shared else None,
        "percent_seeds": shared, "is_all": len(shared) == len(own),
    }  # fmt: skip


def _points(own: Mapping[int, float], base: Mapping[int, float]) -> dict[str, Any]:
    """Return how many points of accuracy lie between two rows, of the seeds that both have, and which these are."""
    shared = sorted(own.keys() & base.keys())
    return {
        "points": 100 * statistics.fmean(own[seed] - base[seed] for seed in shared) if shared else None,
        "points_seeds": shared, "points_are_all": own.keys() <= base.keys(),
    }  # fmt: skip


def _point(figures: Mapping[str, Any], cost: str) -> tuple[float, float] | None:
    """Return what a row spent and reached; None if that is not known, or its runs fell short."""
    if not figures["is_whole"] or not has_both(figures, cost):
        return None
    return figures[cost]["mean"], figures["accuracy_last10"]["mean"]


def front(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """Return the places of points (cost, accuracy) that no other one beats: as good for less, or better for as much.

    >>> front([(1.0, 0.5), (2.0, 0.4), (2.0, 0.9), None, (1.0, 0.5)])
    [0, 2, 4]
    """

    def is_beaten(point: tuple[float, float]) -> bool:
        return any(
            other is not None and other != point and other[0] <= point[0] and other[1] >= point[1] for other in points
        )

    return [place for place, point in enumerate(points) if point is not None and not is_beaten(point)]


def mean_curve(row: Row) -> tuple[Curve, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return a row's mean accuracy and costs at each evaluated round, and the sample deviation of its accuracy.

    A round counts with the runs that have evaluated it; where it is one alone the deviation is 0.
    """
    all_curves = [curves.curve_of(run.rounds) for run in row.counted]
    rounds = np.unique(np.concatenate([curve.costs["rounds"] for curve in all_curves]))
    values = {name: np.full((len(all_curves), len(rounds)), np.nan) for name in ("accuracy", *all_curves[0].costs)}
    for place, curve in enumerate(all_curves):
        at = np.searchsorted(rounds, curve.costs["rounds"])
        values["accuracy"][place, at] = curve.accuracy
        for name, cost in curve.costs.items():
            values[name][place, at] = cost
    count = (~np.isnan(values["accuracy"])).sum(axis=0)
    means = {name: np.nansum(value, axis=0) / count for name, value in values.items()}
    squares = np.nansum((values["accuracy"] - means["accuracy"]) ** 2, axis=0)
    accuracy = means.pop("accuracy")
    return Curve(accuracy, means), np.sqrt(squares / np.maximum(1, count - 1))
