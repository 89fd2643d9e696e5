"""One round up to the point where its clients train."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from raysim.client.assignments import Assignments, Broadcast
from raysim.clock.work import Cohort
from raysim.methods.method import RoundView
from raysim.pruning.masks import CohortMasks
from raysim.simulation import cohort as cohorts
from raysim.simulation.assignments import assignments_of
from raysim.simulation.participants import cohort_of, respond, select_clients
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState
from raysim.simulation.transition import initial_state


@dataclass(frozen=True)
class PlannedRound:
    cohort: Cohort
    view: RoundView
    masks: CohortMasks
    load: Any
    assignments: Assignments
    broadcast: Broadcast


def plan_round(scenario: Scenario, state: ServerState | None = None) -> PlannedRound:
    """Everything a round decides before anybody trains."""
    from raysim.methods import resolve

    state = initial_state(scenario) if state is None else state
    asked = select_clients(scenario, state, scenario.cohort_size)
    cohort, _ = respond(scenario, state, asked)
    view = cohorts.view_of(scenario, state, cohort)
    masks, _ = cohorts.choose_masks(scenario, view)
    load = cohorts.load_of(scenario, view, masks)
    assignments = assignments_of(scenario, cohort, masks, load, state.clients)
    extra = resolve.extra(scenario.method, view)
    return PlannedRound(
        cohort, view, masks, load, assignments, Broadcast(cohort.round, state.params, scenario.method.rules, extra)
    )


def view_for(scenario: Scenario, state: ServerState, round: int, clients: int = 3) -> RoundView:
    """What a method sees in a round of its first clients."""
    cohort = cohort_of(scenario, np.arange(clients), round)
    return cohorts.view_of(scenario, state, cohort)


def state_after(scenario: Scenario, count: int) -> ServerState:
    from raysim.executors.in_process import InProcessExecutor

    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    for _ in range(count):
        state, _ = run_round(scenario, state, executor)
    return state
