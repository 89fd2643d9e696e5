"""What a round does is known before anybody trains: who is asked, who starts, until when, whose work counts."""

from collections.abc import Callable
from functools import partial
from math import ceil

import numpy as np
from numpy.typing import NDArray

from raysim.clock.interruptions import can_answer, interrupted
from raysim.clock.modes import ROUND_ENDS, fit_epochs
from raysim.clock.outcomes import COUNTED, INFEASIBLE, OUTCOME_DTYPE, UNREACHABLE
from raysim.clock.timing import CohortLoad, CohortTiming
from raysim.clock.work import Absent, Cohort, Plan, Work
from raysim.core.tensors import Params
from raysim.methods.method import RoundView
from raysim.pruning.masks import CohortMasks
from raysim.selection import table as selection
from raysim.selection.view import SelectionView
from raysim.simulation.cohort import choose_masks, cohort_of, feasible, load_of, schedule_cohort, view_of, with_method
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState

ChooseMasks = Callable[[Scenario, RoundView], tuple[CohortMasks, Params]]
"""From what the server knows to each client's submodel, and the memory it keeps of the ranking."""


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
    work, duration_s = ROUND_ENDS[rules.mode](begun(scenario, state, work), rules, scenario.cohort_size)
    return Plan((work,), absent, (), duration_s + rules.server_s, memory)


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
        outcomes=np.repeat([UNREACHABLE, INFEASIBLE], [len(away), len(unable.clients)]),
        limited_by=np.concatenate([np.full(len(away), "nothing"), unable.limited_by]),
    )
    return with_method(scenario, state, able), absent


def reachable(scenario: Scenario, state: ServerState, clients: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which clients are online and have some battery left, `(clients,)`."""
    workload = scenario.workload
    devices = workload.population.devices.of(clients)
    return can_answer(devices, state.history, clients, state.totals.simulated_s, workload.seed)


def prepared(
    scenario: Scenario, state: ServerState, cohort: Cohort, choose: ChooseMasks
) -> tuple[Work, Params]:  # fmt: skip
    """Return what a cohort would do if it started now and nothing stopped it, and what the method remembers.

    With a deadline and partial work, clients that would be late train fewer epochs.
    """
    masks, memory = choose(scenario, view_of(scenario, state, cohort))
    cohort, load, timing = fitted(scenario, state, cohort, masks)
    size = len(cohort.clients)
    start_s, outcomes = np.full(size, state.totals.simulated_s), np.full(size, COUNTED, dtype=OUTCOME_DTYPE)
    return Work(cohort, masks, load, timing, start_s, timing.total_s, outcomes), memory


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
