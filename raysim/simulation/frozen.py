"""Frozen parameters travel down once: which clients hold those of their submodel from an earlier download."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysim.clock.timing import CohortLoad
from raysim.clock.work import Work
from raysim.pruning.costs import ALL_FROZEN
from raysim.pruning.masks import CohortMasks
from raysim.simulation.scenario import Scenario

History = Mapping[str, NDArray[np.float64]]
HELD = "frozen_part"
"""Column of the history: the part of the frozen parameters that each client holds; 0: none. See `CostTable`."""


def without_held(
    scenario: Scenario, history: History, clients: NDArray[np.int64], masks: CohortMasks, load: CohortLoad
) -> CohortLoad:
    """Return the load without the frozen parameters of clients that hold them.

    A client holds those of the last submodel that it downloaded whole, or all that there are once it has had them.
    """
    if HELD not in history:
        return load
    held = history[HELD][clients]
    known = (held == ALL_FROZEN) | (held == masks.each(scenario.costs.frozen_part, np.float64))
    return replace(load, down_bytes=load.down_bytes - np.where(known, masks.each(scenario.costs.frozen_bytes), 0))


def remembered(scenario: Scenario, history: History, works: tuple[Work, ...]) -> dict[str, NDArray[np.float64]]:
    """Return the history after some work has ended, with what the clients hold whose download was completed."""
    if not scenario.costs.dense.frozen_bytes:
        return dict(history)
    for work in works:
        done = np.flatnonzero(work.completed_shares.download_s >= 1)
        history = with_received(scenario, history, work.cohort.clients[done], work.masks.take(done))
    return dict(history)


def with_received(
    scenario: Scenario, history: History, clients: NDArray[np.int64], masks: CohortMasks
) -> dict[str, NDArray[np.float64]]:
    """Return the history after some clients have received their submodels."""
    if not scenario.costs.dense.frozen_bytes:
        return dict(history)
    held = history.get(HELD, np.zeros(len(scenario.workload.population))).copy()
    part = masks.each(scenario.costs.frozen_part, np.float64)
    held[clients] = np.where(held[clients] == ALL_FROZEN, ALL_FROZEN, part)
    return {**history, HELD: held}
