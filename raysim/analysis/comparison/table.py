"""Compute the table of a comparison: means over seeds, per cent of a baseline, costs of targets, Pareto fronts."""

from collections.abc import Mapping, Sequence
from typing import Any

from raysim.analysis.comparison.curves import curve_of
from raysim.analysis.comparison.figures import FURTHER, WIDTH, figures_of
from raysim.analysis.comparison.rows import Row
from raysim.analysis.comparison.run_record import RunRecord
from raysim.analysis.tables.columns import FINAL, LAST_MEAN, LOWER, leading
from raysim.analysis.tables.means import against, paired
from raysim.config.metric import PrimaryMetric

SPENT = ("megabytes", "simulated_s", "energy_j")
"""The costs that scores are compared with, in the order of the table's columns."""
AVERAGED = (*LOWER, "pruning_ratio", *SPENT, "gigaflops", "rounds")
"""The figures of a row; scores are named after the metric."""


def table_of(rows: Sequence[Row], baseline: Row, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Return all figures of each row, ready for JSON.

    Args:
        rows: The rows.
        baseline: The row among them that the others are compared with.
        targets: Values of the primary metric whose costs are computed.
    """
    metric = baseline.primary
    by_row = {id(row): _Measured(row, targets) for row in rows}
    leads = leading_of([figures for each in by_row.values() for figures in each.figures.values()], metric)
    if leads != metric.recorded(LAST_MEAN):  # a mean of the last evaluations that some runs lack compares nothing
        for each in by_row.values():
            each.figures = {seed: dict(found) for seed, found in each.figures.items()}
            for found in each.figures.values():
                found.pop(metric.recorded(LAST_MEAN), None)
    known = {name for measured in by_row.values() for figures in measured.figures.values() for name in figures}
    widths = sorted((name for name in known if name.startswith((metric.recorded(WIDTH), FURTHER))), reverse=True)
    table = [_figures(by_row[id(row)], by_row[id(baseline)], targets, leads, widths) for row in rows]
    for name in compared_costs(table):
        for index in front([_point(each, name, metric) for each in table]):
            table[index]["fronts"].append(name)
    return table


def leading_of(figures: Sequence[Mapping[str, float]], metric: PrimaryMetric) -> str:
    """Return the score by which rows are compared, from the figures of all their runs."""
    last_mean, final = metric.recorded(LAST_MEAN), metric.recorded(FINAL)
    return leading([last_mean in each for each in figures if final in each], metric)


def compared_costs(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the costs that scores are compared with: those that more than one row has."""
    return [name for name in SPENT if sum(has_both(row, name) for row in table) > 1]


def has_both(row: Mapping[str, Any], cost: str) -> bool:
    """Whether a row has a score and a cost."""
    return row[cost]["mean"] is not None and row[row["leading"]]["mean"] is not None


class _Measured:
    """The figures of a row's runs, by seed."""

    def __init__(self, row: Row, targets: Sequence[float]) -> None:
        self.row = row
        self.figures = {run.settings.seed: figures_of(run.rounds, run.primary) for run in row.counted}
        self.costs = {target: self._costs(row.counted, target) for target in targets}

    def _costs(self, runs: Sequence[RunRecord], target: float) -> dict[int, dict[str, float]]:
        """Return the counted costs of the target, by seed of the runs that reached it."""
        spent = {run.settings.seed: curve_of(run.rounds, run.primary).cost_of(target) for run in runs}
        return {
            seed: {name: cost for name, cost in costs.items() if cost is not None and name in self.figures[seed]}
            for seed, costs in spent.items()
            if costs["rounds"] is not None
        }

    def of(self, name: str) -> dict[int, float]:
        """Return a figure by seed."""
        return {seed: figures[name] for seed, figures in self.figures.items() if name in figures}


def _figures(
    own: _Measured, base: _Measured, targets: Sequence[float], leads: str, widths: Sequence[str]
) -> dict[str, Any]:
    row, metric = own.row, own.row.primary
    return {
        "label": row.label,
        "method": row.method,
        **metric.entries,
        "settings": dict(row.settings),
        "other_settings": dict(row.other_settings),
        "seeds": row.seeds,
        "counted": len(row.counted),
        "is_whole": row.is_whole,
        "runs": [run.name for run in row.runs],
        "states": [run.state for run in row.runs],
        **{name: against(own.of(name), base.of(name)) for name in map(metric.recorded, AVERAGED)},
        "leading": leads,
        **paired(own.of(leads), base.of(leads), metric.scale),
        "widths": {name: against(own.of(name), base.of(name)) for name in widths},
        "targets": [_target(target, own, base) for target in targets],
        "fronts": [],
    }


def _target(target: float, own: _Measured, base: _Measured) -> dict[str, Any]:
    """Return what a target cost the runs of a row that reached it."""
    costs, others = own.costs[target], base.costs[target]
    found: dict[str, Any] = {own.row.primary.name: target, "reached": len(costs), "of": len(own.row.counted)}
    for name in ("rounds", *SPENT):
        mine = {seed: cost[name] for seed, cost in costs.items() if name in cost}
        theirs = {seed: cost[name] for seed, cost in others.items() if name in cost}
        found[name] = against(mine, theirs)
    return found


def _point(figures: Mapping[str, Any], cost: str, metric: PrimaryMetric) -> tuple[float, float] | None:
    """Return what a row spent and reached, more being better; None if not known, or none of its runs finished."""
    if not figures["is_whole"] or not has_both(figures, cost):
        return None
    return figures[cost]["mean"], metric.sign * figures[figures["leading"]]["mean"]


def front(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """Return the indices of points (cost, score) on the Pareto front: no other is as good for less.

    >>> front([(1.0, 0.5), (2.0, 0.4), (2.0, 0.9), None, (1.0, 0.5)])
    [0, 2, 4]
    """

    def is_beaten(point: tuple[float, float]) -> bool:
        return any(
            other is not None and other != point and other[0] <= point[0] and other[1] >= point[1] for other in points
        )

    return [index for index, point in enumerate(points) if point is not None and not is_beaten(point)]
