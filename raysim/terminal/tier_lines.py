"""Summarise a round in one line of figures for each tier of devices, quickly enough for the progress of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.config.metric import ACCURACY
from raysim.core.tensors import Columns

MOST_TIERS = 8
"""Tiers that get a line on a screen: those with most clients in the round."""


@dataclass(frozen=True, slots=True)
class TierLine:
    """A tier in a round; a figure that nobody gives is NaN.

    Attributes:
        tier: Its name.
        counted: Clients whose work counts.
        selected: Clients that were selected, or whose work ended.
        pruning_ratio: Mean share of the parameters that were removed, of those that count.
        score: Mean primary metric of the submodels that were scored.
        client_s: Median simulated seconds of those that count, from download to upload.
    """

    tier: str
    counted: int
    selected: int
    pruning_ratio: float
    score: float
    client_s: float


def tier_lines(
    clients: Columns, tiers: Sequence[str], most: int = MOST_TIERS, primary: str = ACCURACY.name
) -> list[TierLine]:
    """Return the lines of a round's tiers, in the order of the tiers.

    Args:
        clients: A row per client that was selected, or whose work ended.
        tiers: Names of all tiers.
        most: How many get a line: those with most clients.
        primary: The column of the primary metric.
    """
    members = {tier: np.flatnonzero(clients["tier"] == tier) for tier in tiers}
    shown = sorted(tiers, key=lambda tier: -len(members[tier]))[:most]
    counts = clients["fate"] == outcomes.COUNTED
    return [_line(tier, clients, members[tier], counts, primary) for tier in tiers if tier in shown]


def _line(
    tier: str, clients: Columns, selected: NDArray[np.int64], counts: NDArray[np.bool_], primary: str
) -> TierLine:
    counted = selected[counts[selected]]
    return TierLine(
        tier,
        len(counted),
        len(selected),
        _mean(clients["pruning_ratio"][counted]),
        _mean(clients[primary][selected]),
        float(np.median(clients["total_s"][counted])) if len(counted) else nan,
    )


def _mean(values: NDArray[Any]) -> float:
    there = values[~np.isnan(values)].astype(np.float64)
    return float(there.mean()) if len(there) else nan
