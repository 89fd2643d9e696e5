"""Curves of the primary metric and its costs from the tables of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim.config.metric import ACCURACY, FIELD, PrimaryMetric
from raysim.core.tensors import Columns
from raysim.simulation import records

COSTS = {"simulated_s": "simulated seconds", "megabytes": "megabytes moved", "energy_j": "joules of the devices"}
"""The costs besides rounds, with the labels of their axes."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The primary metric of a run on test rows and what it had cost by then, arrays `(evaluations,)`."""

    values: NDArray[np.float64]
    costs: Mapping[str, NDArray[np.float64]]
    metric: PrimaryMetric = ACCURACY

    def cost_of(self, target: float) -> dict[str, float | None]:
        """Return what had been spent when a target was first reached; None if it never was."""
        reached = np.flatnonzero(self.metric.sign * self.values >= self.metric.sign * target)
        return {name: float(cost[reached[0]]) if len(reached) else None for name, cost in self.costs.items()}


def read(path: Path, metric: PrimaryMetric = ACCURACY) -> Curve:
    """Return the curve in the `rounds.parquet` of a run."""
    return curve_of(records.read(path), metric)


def curve_of(rounds: Columns, metric: PrimaryMetric = ACCURACY) -> Curve:
    """Return the curve in a table of rounds, evaluated rounds only; without rounds it is empty."""
    if not rounds:
        return Curve(np.zeros(0), {name: np.zeros(0) for name in ("rounds", *COSTS)}, metric)
    values = rounds[metric.name].astype(np.float64)
    scored = ~np.isnan(values)
    costs = {
        "rounds": rounds["round"],
        "simulated_s": rounds["simulated_s"],
        "megabytes": rounds["bytes"] / 1e6,
        "energy_j": rounds["energy_j"],
    }
    return Curve(values[scored], {name: cost[scored].astype(np.float64) for name, cost in costs.items()}, metric)


def mean_curve(curves: Sequence[Curve]) -> tuple[Curve, NDArray[np.float64]]:
    """Return the mean score and costs of curves at each evaluated round, and the deviation of the score.

    A round is averaged over the curves that have it; its sample standard deviation is 0 if only one has it.

    Returns:
        The mean curve, and the deviations `(evaluations,)`.
    """
    rounds = np.unique(np.concatenate([curve.costs["rounds"] for curve in curves]))
    values = {name: np.full((len(curves), len(rounds)), np.nan) for name in (FIELD, *curves[0].costs)}
    for index, curve in enumerate(curves):
        columns = np.searchsorted(rounds, curve.costs["rounds"])
        values[FIELD][index, columns] = curve.values
        for name, cost in curve.costs.items():
            values[name][index, columns] = cost
    count = (~np.isnan(values[FIELD])).sum(axis=0)
    means = {name: np.nansum(value, axis=0) / count for name, value in values.items()}
    squares = np.nansum((values[FIELD] - means[FIELD]) ** 2, axis=0)
    mean = means.pop(FIELD)
    return Curve(mean, means, curves[0].metric), np.sqrt(squares / np.maximum(1, count - 1))
