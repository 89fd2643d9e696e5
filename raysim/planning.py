"""What a round does is known before anybody trains: who is asked, who starts, until when, whose work counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import numpy as np
from numpy.typing import NDArray

from raysim import availability, energy
from raysim.clock import ClockRules, CohortLoad
from raysim.cohort import Cohort, choose_masks, cohort_of, feasible, load_of, schedule_cohort, view_of, with_method
from raysim.cohort_masks import CohortMasks
from raysim.fates import COUNTED, FATE, INFEASIBLE, UNREACHABLE
from raysim.interruptions import interrupted
from raysim.methods.method import RoundView
from raysim.round_end import ROUND_ENDS
from raysim.scenario import Scenario
from raysim.selection import table as selection
from raysim.selection.view import SelectionView
from raysim.types import CohortTiming, Devices, Params, ServerState
from raysim.work import Work

ChooseMasks = Callable[[Scenario, RoundView], tuple[CohortMasks, Params]]
"""From what the server knows to each client's submodel, and the memory it keeps of the ranking."""


@dataclass(frozen=True, slots=True, eq=False)
class Absent:
    """Clients that were asked and do not start: ids `(absent,)`, when each was asked, and why it does not."""

    clients: NDArray[np.int64]
    asked_s: NDArray[np.float64]
    fates: NDArray[np.str_]
    limited_by: NDArray[np.str_]

    @staticmethod
    def nobody() -> "Absent":
        """Return a record of nobody."""
        return Absent(np.empty(0, np.int64), np.empty(0), np.empty(0, FATE), np.empty(0, np.str_))


def all_absent(absent: Sequence[Absent]) -> Absent:
    """Return all who are absent as one, in ascending order of ids."""
    columns = [np.concatenate([getattr(each, name) for each in absent]) for name in Absent.__slots__]
    order = np.argsort(columns[0])
    return Absent(*(column[order] for column in columns))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A round, all but its training.

    Attributes:
        ended: Work that ends in it, one for each version of the model that clients started from, oldest first.
        absent: Who was asked and did not start.
        in_flight: Work that goes on after it (asynchronous rounds).
        round_s: Its simulated seconds.
        memory: What the method remembers, its ranking renewed.
    """

    ended: tuple[Work, ...]
    absent: Absent
    in_flight: tuple[Work, ...]
    round_s: float
    memory: Params


def plan_together(scenario: Scenario, state: ServerState, choose: ChooseMasks = choose_masks) -> Plan:
    """Plan a round that its cohort starts together: synchronous, with a deadline, or over-selecting."""
    rules = scenario.clock
    factor = rules.over_selection if rules.mode == "over-selection" else 1.0
    wanted = ceil(scenario.cohort_size * factor - 1e-9)  # 10 x 1.1 is 11.000000000000002
    asked = ask(scenario, state, min(wanted, len(scenario.workload.population)))
    cohort, absent = answering(scenario, state, asked)
    if not len(cohort.clients):
        return Plan((), absent, (), rules.nobody_s + rules.server_s, state.memory)
    work, memory = prepared(scenario, state, cohort, choose)
    work, lasts_s = ROUND_ENDS[rules.mode](begun(scenario, state, work), rules, scenario.cohort_size)
    return Plan((work,), absent, (), lasts_s + rules.server_s, memory)


def ask(
    scenario: Scenario, state: ServerState, size: int, busy: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return the ids of the clients the server asks, ascending.

    Args:
        scenario: The run.
        state: What the server knows.
        size: How many to ask.
        busy: Whether each client must not be asked; none = all may.
    """
    workload, rule = scenario.workload, scenario.selection
    everybody = np.arange(len(workload.population))
    online = None if rule.name == "uniform" else reachable(scenario, state, everybody)
    view = SelectionView(
        len(everybody), size, state.round + 1, workload.seed, workload.population.train.counts, online, busy,
        state.history,
    )  # fmt: skip
    return selection.choose(rule, view)


def answering(scenario: Scenario, state: ServerState, asked: NDArray[np.int64]) -> tuple[Cohort, Absent]:
    """Return who of the asked can be reached and can train something, with what the method trains there."""
    online = reachable(scenario, state, asked)
    cohort = cohort_of(scenario, asked[online], state.round + 1)
    able, unable = feasible(cohort)
    away = asked[~online]
    absent = Absent(
        clients=np.concatenate([away, unable.clients]),
        asked_s=np.full(len(away) + len(unable.clients), state.totals.simulated_s),
        fates=np.repeat([UNREACHABLE, INFEASIBLE], [len(away), len(unable.clients)]),
        limited_by=np.concatenate([np.full(len(away), "nothing"), unable.limited_by]),
    )
    return with_method(scenario, state, able), absent


def reachable(scenario: Scenario, state: ServerState, clients: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which clients are online and have some battery left, `(clients,)`."""
    workload = scenario.workload
    devices = workload.population.devices.of(clients)
    return can_answer(devices, state.history, clients, state.totals.simulated_s, workload.seed)


def can_answer(
    devices: Devices, history: Mapping[str, NDArray[np.float64]], clients: NDArray[np.int64], now_s: float, seed: int
) -> NDArray[np.bool_]:  # fmt: skip
    """Return which clients are online and have some battery left, `(clients,)`; `devices` are theirs."""
    online = availability.is_online(devices, clients, now_s, seed)
    return online & (energy.levels_j(devices, history, clients, now_s) > 0)


def reach_varies(devices: Devices) -> bool:
    """Whether it depends on the time if a client can be reached and goes on with its work."""
    sometimes = (devices.figures["availability"] < 1) | (devices.figures["availability_swing"] > 0)
    return devices.online is not None or bool(sometimes.any()) or energy.have_batteries(devices)


def prepared(
    scenario: Scenario, state: ServerState, cohort: Cohort, choose: ChooseMasks
) -> tuple[Work, Params]:  # fmt: skip
    """Return what a cohort would do if it started now and nothing stopped it, and what the method remembers.

    With a deadline and partial work, clients that would be late train fewer epochs.
    """
    masks, memory = choose(scenario, view_of(scenario, state, cohort))
    cohort, load, timing = fitted(scenario, state, cohort, masks)
    size = len(cohort.clients)
    start_s, fates = np.full(size, state.totals.simulated_s), np.full(size, COUNTED, dtype=FATE)
    return Work(cohort, masks, load, timing, start_s, timing.total_s, fates), memory


def begun(scenario: Scenario, state: ServerState, work: Work) -> Work:
    """Return the work with what stops clients in the middle of it."""
    return interrupted(work, scenario.workload.population.devices, state.history, scenario.workload.seed)


def fitted(
    scenario: Scenario, state: ServerState, cohort: Cohort, masks: CohortMasks
) -> tuple[Cohort, CohortLoad, CohortTiming]:
    """Return load and timing of a cohort; late clients train fewer epochs where partial work is accepted."""

    def load_at(cohort: Cohort) -> CohortLoad:
        return load_of(scenario, view_of(scenario, state, cohort), masks)

    timing_of = partial(schedule_cohort, scenario)
    return fit_epochs(cohort, load_at, timing_of, scenario.clock, scenario.method.min_epochs)


def fit_epochs(
    cohort: Cohort, load_at: Callable[[Cohort], CohortLoad],
    timing_of: Callable[[Cohort, CohortLoad], CohortTiming], rules: ClockRules, min_epochs: int,
) -> tuple[Cohort, CohortLoad, CohortTiming]:  # fmt: skip
    """Return a cohort with load and timing; late clients train fewer epochs where partial work is accepted.

    Args:
        cohort: Who takes part, with as many epochs as they would train.
        load_at: What a cohort transfers and computes with its epochs.
        timing_of: How long that takes.
        rules: Whether there is a deadline, and partial work is accepted.
        min_epochs: Fewest epochs that the method makes sense with.
    """
    while True:
        load = load_at(cohort)
        timing = timing_of(cohort, load)
        late = (timing.total_s > rules.deadline_s) & (cohort.epochs > min_epochs)
        if not (rules.accept_partial and late.any()):
            return cohort, load, timing
        cohort = replace(cohort, epochs=cohort.epochs - late)
