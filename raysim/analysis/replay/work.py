"""Compute the work of recorded clients again: each with the submodel that it trained, on any device."""

from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.clock.modes import ClockRules, fit_epochs
from raysim.clock.timing import CohortLoad, CohortTiming, schedule
from raysim.clock.work import Cohort, Work
from raysim.core.tensors import Columns
from raysim.population.profiles import Devices
from raysim.pruning.masks import CohortMasks, Mask

NO_MASK = Mask(np.empty(0, dtype=np.bool_))
"""The clock does not use masks, and records do not contain them."""
PER_EPOCH = ("train_flops", "activation_bytes", "steps")


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """The devices and rules with which a run is timed.

    Attributes:
        devices: The devices of all clients.
        rules: When a round ends, and which work counts.
        seed: The seed of the experiment.
        cohort_size: The number of clients whose updates make a round.
        epochs: The epochs to start from where late clients train fewer; None: those that each client trained.
        min_epochs: The fewest epochs that the method allows.
    """

    devices: Devices
    rules: ClockRules
    seed: int
    cohort_size: int
    epochs: int | None = None
    min_epochs: int = 1


def work_of(conditions: Conditions, rows: Columns, round: int, now_s: float) -> Work:
    """Return the work of the clients of some rows if they started now and nothing interrupted them."""
    size = len(rows["client"])
    epochs = rows["planned_epochs"] if conditions.epochs is None else np.full(size, conditions.epochs)
    ratios = rows["keep_ratio"]
    cohort = Cohort(round, rows["client"], ratios, ratios, rows["limited_by"], rows["examples"], epochs)
    timing_of = partial(_timing_of, conditions)
    cohort, load, timing = fit_epochs(
        cohort, partial(_load_of, rows), timing_of, conditions.rules, conditions.min_epochs
    )
    outcome_of = np.full(size, outcomes.COUNTED, dtype=outcomes.DTYPE)
    return Work(
        cohort, CohortMasks.of([NO_MASK] * size), load, timing, np.full(size, now_s), timing.total_s, outcome_of
    )


def _timing_of(conditions: Conditions, cohort: Cohort, load: CohortLoad) -> CohortTiming:
    devices = conditions.devices.of(cohort.clients)
    return schedule(load, devices, cohort.clients, cohort.round, conditions.seed)


def _load_of(rows: Columns, cohort: Cohort) -> CohortLoad:
    """Return the recorded load, with a share of the computation for another number of epochs."""
    load = {field.name: rows[f"planned_{field.name}"] for field in fields(CohortLoad)}
    trained = np.maximum(rows["planned_epochs"], 1)
    return CohortLoad(**load | {name: load[name] * cohort.epochs // trained for name in PER_EPOCH})


def rows_of(table: Columns, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Columns:
    """Return some rows of a table."""
    return {name: column[rows] for name, column in table.items()}
