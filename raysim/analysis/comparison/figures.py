"""Compute what one run reached and spent from its table of rounds."""

import numpy as np

from raysim.analysis.comparison.curves import curve_of
from raysim.analysis.tables.columns import BEST, FINAL, LAST_MEAN
from raysim.analysis.tables.means import last_mean
from raysim.config.metric import ACCURACY, PrimaryMetric
from raysim.core.tensors import Columns

FURTHER = "test/"
"""Before the name of a further metric on the test rows."""
WIDTH = "width_primary/"
"""Before the width, in the name of the score of the global model cut to it, with the metric's name for `primary`."""
Figures = dict[str, float]
"""Costs and results of one run, by name."""


def figures_of(rounds: Columns, metric: PrimaryMetric = ACCURACY) -> Figures:
    """Return what a run reached and spent up to its last recorded round, without what is not known."""
    if not rounds:
        return {}
    scores = curve_of(rounds, metric).values.tolist()
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
    found |= widths_of(rounds, metric) | further_of(rounds)
    if scores:
        found |= metric.as_recorded({FINAL: scores[-1], BEST: metric.best(scores)})
        if (last := last_mean(scores)) is not None:
            found[metric.recorded(LAST_MEAN)] = last
    return found


def widths_of(rounds: Columns, metric: PrimaryMetric) -> Figures:
    """Return the last score of the global model cut to each width, as `width_accuracy/<width>`."""
    found: Figures = {}
    for name in rounds:
        if name.startswith(metric.recorded(WIDTH)):
            known = rounds[name].astype(np.float64)[~np.isnan(rounds[name].astype(np.float64))]
            found |= {name: float(known[-1])} if len(known) else {}
    return found


def further_of(rounds: Columns) -> Figures:
    """Return the last value of each further metric on the test rows, as `test/<name>`; none of single classes."""
    names = [name for name in rounds if name.startswith(FURTHER) and name.count("/") == 1]
    known = {name: rounds[name].astype(np.float64) for name in names}
    return {
        name: float(column[~np.isnan(column)][-1]) for name, column in known.items() if not np.isnan(column).all()
    }
