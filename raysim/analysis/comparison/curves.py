"""Curves of accuracy and costs from the tables of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim.core.tensors import Columns
from raysim.simulation import records

COSTS = {"simulated_s": "simulated seconds", "megabytes": "megabytes moved", "energy_j": "joules of the devices"}
"""The costs of accuracy besides rounds, with the labels of their axes."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The test accuracy of a run and what it had cost by then, arrays `(evaluations,)`."""

    accuracy: NDArray[np.float64]
    costs: Mapping[str, NDArray[np.float64]]

    def cost_of(self, target: float) -> dict[str, float | None]:
        """Return what had been spent when a target accuracy was first reached; None if it never was."""
        reached = np.flatnonzero(self.accuracy >= target)
        return {name: float(cost[reached[0]]) if len(reached) else None for name, cost in self.costs.items()}


def read(path: Path) -> Curve:
    """Return the curve in the `rounds.parquet` of a run."""
    return curve_of(records.read(path))


def curve_of(rounds: Columns) -> Curve:
    """Return the curve in a table of rounds, evaluated rounds only; without rounds it is empty."""
    if not rounds:
        return Curve(np.zeros(0), {name: np.zeros(0) for name in ("rounds", *COSTS)})
    accuracy = rounds["accuracy"].astype(np.float64)
    scored = ~np.isnan(accuracy)
    costs = {
        "rounds": rounds["round"],
        "simulated_s": rounds["simulated_s"],
        "megabytes": rounds["bytes"] / 1e6,
        "energy_j": rounds["energy_j"],
    }
    return Curve(accuracy[scored], {name: cost[scored].astype(np.float64) for name, cost in costs.items()})


def mean_curve(curves: Sequence[Curve]) -> tuple[Curve, NDArray[np.float64]]:
    """Return the mean accuracy and costs of curves at each evaluated round, and the deviation of the accuracy.

    A round is averaged over the curves that have it; its sample standard deviation is 0 if only one has it.

    Returns:
        The mean curve, and the deviations `(evaluations,)`.
    """
    rounds = np.unique(np.concatenate([curve.costs["rounds"] for curve in curves]))
    values = {name: np.full((len(curves), len(rounds)), np.nan) for name in ("accuracy", *curves[0].costs)}
    for index, curve in enumerate(curves):
        columns = np.searchsorted(rounds, curve.costs["rounds"])
        values["accuracy"][index, columns] = curve.accuracy
        for name, cost in curve.costs.items():
            values[name][index, columns] = cost
    count = (~np.isnan(values["accuracy"])).sum(axis=0)
    means = {name: np.nansum(value, axis=0) / count for name, value in values.items()}
    squares = np.nansum((values["accuracy"] - means["accuracy"]) ** 2, axis=0)
    accuracy = means.pop("accuracy")
    return Curve(accuracy, means), np.sqrt(squares / np.maximum(1, count - 1))
