"""Compute what one run reached and spent from its table of rounds."""

import statistics
from collections.abc import Sequence

import numpy as np

from raysim.analysis.comparison.curves import curve_of
from raysim.analysis.tables.means import LAST
from raysim.core.tensors import Columns

Figures = dict[str, float]
"""Costs and results of one run, by name."""


def figures_of(rounds: Columns) -> Figures:
    """Return what a run reached and spent up to its last recorded round, without what is not known."""
    if not rounds:
        return {}
    accuracies = curve_of(rounds).accuracy.tolist()
    found = {
        "rounds": float(len(rounds["round"])),
        "megabytes": float(rounds["bytes"][-1]) / 1e6,
        "simulated_s": float(rounds["simulated_s"][-1]),
    }
    if rounds["energy_j"][-1] > 0:  # devices without power figures spend no energy that is counted
        found["energy_j"] = float(rounds["energy_j"][-1])
    if "train_flops" in rounds:
        found["gigaflops"] = float(rounds["train_flops"][-1]) / 1e9
    if "pruning_ratio/mean" in rounds:
        ratios, counted = rounds["pruning_ratio/mean"], rounds["clients/counted"]
        known = ~np.isnan(ratios) & (counted > 0)
        if known.any():
            found["pruning_ratio"] = float(np.average(ratios[known], weights=counted[known]))
    if accuracies:
        found["accuracy_last10"] = statistics.fmean(accuracies[-LAST:])
        found |= {"accuracy": accuracies[-1], "best_accuracy": max(accuracies)}
    return found


def default_target(figures: Sequence[Figures]) -> float | None:
    """Return 95 % of the accuracy of a baseline's runs, rounded down to a per cent; None if that is nothing.

    >>> default_target([{"accuracy_last10": 0.9}, {"accuracy_last10": 0.8}])
    0.8
    """
    known = [each["accuracy_last10"] for each in figures if "accuracy_last10" in each]
    target = int(95 * statistics.fmean(known) + 1e-9) / 100 if known else 0.0
    return target or None
