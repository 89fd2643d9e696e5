"""Assign to each client of a round its submodel, the version of the model to start from, and whether to score it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raysim.client.assignments import ALONE, Assignments, Broadcast
from raysim.client.packing import packed
from raysim.clock.timing import CohortLoad
from raysim.clock.work import Cohort, Work
from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.methods import resolve as methods
from raysim.pruning.masks import CohortMasks
from raysim.simulation.cohort import view_of
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState


def assign(scenario: Scenario, state: ServerState, work: Work) -> tuple[Assignments, Broadcast]:
    """Return the assignments of clients that started from one version of the model, and what they received."""
    cohort = work.cohort
    extra = methods.extra(scenario.method, view_of(scenario, state, cohort))
    broadcast = Broadcast(cohort.round, version_of(state, cohort.round), scenario.method.rules, extra)
    assignments = assignments_of(scenario, cohort, work.masks, work.load, state.clients)
    batch_size = scenario.workload.local.batch_size
    return packed(assignments, cohort.examples, batch_size, scenario.pack_size), broadcast


def version_of(state: ServerState, round: int) -> Params:
    """Return the global parameters that clients starting in a round received."""
    return state.params if round == state.round + 1 else state.versions[round]


def assignments_of(
    scenario: Scenario, cohort: Cohort, masks: CohortMasks, load: CohortLoad, memory: Mapping[int, Params]
) -> Assignments:
    """Return a cohort's assignments, every client by itself."""
    method = scenario.method
    is_read = method.sends_memory or method.objective.sends_memory or method.rules.remembers_updates
    memory = memory if is_read else {}
    return Assignments(
        cohort,
        masks,
        scored_clients(scenario, cohort),
        load.train_flops.astype(np.float64),
        np.full(len(cohort.clients), ALONE),
        memories_of(memory, cohort.clients),
    )


def memories_of(memory: Mapping[int, Params], clients: NDArray[np.int64]) -> dict[int, Params]:
    """Return the stored state of the clients that have any."""
    return {client: memory[client] for client in clients.tolist() if client in memory} if memory else {}


def scored_clients(scenario: Scenario, cohort: Cohort) -> NDArray[np.bool_]:
    """Return which clients score their submodels on held-out rows, `(cohort,)`, drawn from the seed.

    It is a fixed share of a cohort that starts together, and that share on average otherwise.
    """
    seed, size = scenario.workload.seed, len(cohort.clients)
    if not scenario.clock.mode.starts_together:
        drawn = seeding.uniform(seed, "scored clients", cohort.round, cohort.clients)[0]
        return np.asarray(drawn < scenario.scored_share)
    scored = np.zeros(size, dtype=np.bool_)
    rng = seeding.generator(seed, "scored clients", cohort.round)
    scored[rng.permutation(size)[: round(size * scenario.scored_share)]] = True
    return scored
