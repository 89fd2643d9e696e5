"""The server state before round 1, and from one round to the next."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysim.clock import energy, outcomes
from raysim.clock.work import Absent, Plan, unfinished
from raysim.core.tensors import Columns, Params
from raysim.methods.scaled_start import scaled_start
from raysim.selection import table as selection
from raysim.simulation import client_state, frozen
from raysim.simulation.accounting import add_round, client_columns, in_order
from raysim.simulation.aggregation import ReceivedUpdates
from raysim.simulation.assignments import version_of
from raysim.simulation.participants import cohort_of
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState


def initial_state(scenario: Scenario) -> ServerState:
    """Return the state before round 1."""
    return ServerState(round=0, params=initial_params(scenario), history=initial_history(scenario))


def initial_params(scenario: Scenario) -> Params:
    """Return the model as it was built, scaled if the method asks for it."""
    params = dict(scenario.workload.model.state_dict())
    if scenario.method.options.scaled_start:
        everybody = cohort_of(scenario, np.arange(len(scenario.workload.population)), round=1)
        params = scaled_start(scenario.workload.plan, params, everybody, scenario.frozen)
    return {key: tensor.detach().clone() for key, tensor in params.items()}


def unscaled_state(scenario: Scenario) -> ServerState:
    """Return the state before round 1 with the model as it was built, for what depends on no values."""
    return ServerState(0, dict(scenario.workload.model.state_dict()), history=initial_history(scenario))


def initial_history(scenario: Scenario) -> dict[str, NDArray[np.float64]]:
    """Return the columns kept of every client before round 1."""
    return selection.initial_history(scenario.selection, len(scenario.workload.population))


def next_state(
    scenario: Scenario,
    state: ServerState,
    plan: Plan,
    params: Params,
    memory: Params,
    clients: Columns,
    received: ReceivedUpdates | None,
) -> ServerState:
    """Return the state after a round, except for its score.

    Args:
        scenario: The run.
        state: The state before the round.
        plan: The round's plan.
        params: Global parameters and buffers after it.
        memory: Memory of the method and the server's optimizer after it.
        clients: The round's table of clients.
        received: The updates that count. None: there are none.
    """
    memories = {} if received is None else received.updates.memories
    return ServerState(
        round=state.round + 1,
        params=params,
        memory=memory,
        totals=add_round(state.totals, plan, clients),
        clients=client_state.updated(state.clients, memories),
        history=_history(scenario, state, plan, clients),
        in_flight=plan.in_flight,
        versions={work.cohort.round: version_of(state, work.cohort.round) for work in plan.in_flight},
    )


def _history(scenario: Scenario, state: ServerState, plan: Plan, clients: Columns) -> dict[str, NDArray[np.float64]]:
    """Return the columns kept of every client: for the selection rule, of batteries, and the frozen part held."""
    history = selection.updated_history(
        scenario.selection,
        state.history,
        clients["client"],
        clients["train_loss"],
        np.where(clients["fate"] == outcomes.COUNTED, clients["total_s"], np.nan),
        state.round + 1,
    )
    ends_s = state.totals.simulated_s + plan.round_s - scenario.clock.server_s
    return energy.remembered(
        scenario.workload.population.devices,
        frozen.remembered(scenario, {**state.history, **history}, plan.ended),
        clients,
        ends_s if scenario.clock.mode.waits_for_end else None,
    )


def end_work_in_flight(scenario: Scenario, after: ServerState, clients: Columns) -> tuple[ServerState, Columns]:
    """Return state and table of a round; if it is the last, work still in flight ends unfinished."""
    if not scenario.is_over(after):
        return after, clients
    return abandon_work_in_flight(scenario, after, clients)


def abandon_work_in_flight(scenario: Scenario, after: ServerState, clients: Columns) -> tuple[ServerState, Columns]:
    """Return state and table of the last round: work still in flight ends unfinished."""
    if not after.in_flight:
        return after, clients
    works = [unfinished(work, after.totals.simulated_s) for work in after.in_flight]
    rest = Plan(tuple(works), Absent.nobody(), (), 0.0, after.memory)
    rows = client_columns(scenario, replace(after, round=after.round - 1), rest)
    totals = replace(add_round(after.totals, rest, rows), empty_rounds=after.totals.empty_rounds)
    return replace(after, totals=totals, in_flight=(), versions={}), in_order([clients, rows], after.round)
