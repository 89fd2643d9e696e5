"""Participants of a round: who is selected, who can be reached, and how much of the model each can afford."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysim.budgets.rules import Budgets, budgets_of_tiers
from raysim.budgets.solver import TOLERANCE
from raysim.clock import outcomes
from raysim.clock.interruptions import are_reachable
from raysim.clock.work import Absent, Cohort
from raysim.selection import table as selection
from raysim.selection.view import SelectionView
from raysim.simulation.cohort import view_of
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState


def select_clients(
    scenario: Scenario, state: ServerState, size: int, busy: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return the ids of the clients the server selects, ascending.

    Args:
        scenario: The run.
        state: The server state.
        size: How many to select.
        busy: Whether each client must not be selected. None: all may be.
    """
    workload, rule = scenario.workload, scenario.selection
    everybody = np.arange(len(workload.population))
    online = None if rule.name == "uniform" else reachable(scenario, state, everybody)
    view = SelectionView(
        len(everybody),
        size,
        state.round + 1,
        workload.seed,
        workload.population.train.counts,
        online,
        busy,
        state.history,
    )
    return selection.choose(rule, view)


def respond(scenario: Scenario, state: ServerState, selected: NDArray[np.int64]) -> tuple[Cohort, Absent]:
    """Split the selected clients into the cohort, with its budgets and widths, and those that are absent.

    A client is absent if it cannot be reached or can afford no submodel of the method.
    """
    online = reachable(scenario, state, selected)
    cohort = cohort_of(scenario, selected[online], state.round + 1)
    able, unable = feasible(cohort)
    unreachable = selected[~online]
    absent = Absent(
        clients=np.concatenate([unreachable, unable.clients]),
        selected_s=np.full(len(unreachable) + len(unable.clients), state.totals.simulated_s),
        outcomes=np.repeat([outcomes.UNREACHABLE, outcomes.INFEASIBLE], [len(unreachable), len(unable.clients)]),
        limited_by=np.concatenate([np.full(len(unreachable), "nothing"), unable.limited_by]),
    )
    return with_method(scenario, state, able), absent


def reachable(scenario: Scenario, state: ServerState, clients: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which clients are online and have some battery left, `(clients,)`."""
    workload = scenario.workload
    devices = workload.population.devices.of(clients)
    return are_reachable(devices, state.history, clients, state.totals.simulated_s, workload.seed)


def cohort_of(scenario: Scenario, clients: NDArray[np.int64], round: int) -> Cohort:
    """Return some clients with what the method trains of what they can afford.

    One that can afford no submodel of the method has keep ratio 0, and what forbids it in `limited_by`.
    """
    can_afford = affordable(scenario, clients, round)
    trained = scenario.method.budget(can_afford.keep_ratios)
    if scenario.budget is not None:
        trained = np.where(trained > can_afford.keep_ratios + TOLERANCE, 0.0, trained)
    return Cohort(
        round,
        clients,
        budgets=trained,
        keep_ratios=trained,
        limited_by=np.where(trained < 1, can_afford.limited_by, "nothing"),
        examples=scenario.workload.population.train.counts_of(clients),
        epochs=np.full(len(clients), scenario.workload.local.epochs),
    )


def feasible(cohort: Cohort) -> tuple[Cohort, Cohort]:
    """Split a cohort into those that can afford a submodel of the method and those that cannot."""
    able = cohort.keep_ratios > 0
    return cohort.take(able), cohort.take(~able)


def affordable(scenario: Scenario, clients: NDArray[np.int64], round: int) -> Budgets:
    """Return what some clients can afford in a round."""
    population, seed = scenario.workload.population, scenario.workload.seed
    devices = population.devices.of(clients)
    if scenario.budget is None:
        return budgets_of_tiers(devices)
    return scenario.budget.solve(devices, clients, population.train.counts_of(clients), round, seed)


def with_method(scenario: Scenario, state: ServerState, cohort: Cohort) -> Cohort:
    """Let the method choose widths and epochs, where they depend on more than the device."""
    method, view = scenario.method, view_of(scenario, state, cohort)
    if method.widths is not None:
        limited_by = np.full(len(cohort.clients), "method")
        cohort = replace(cohort, keep_ratios=method.widths(view), limited_by=limited_by)
    if method.work is not None:
        cohort = replace(cohort, epochs=method.work(view))
    return cohort
