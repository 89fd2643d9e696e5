"""Aggregation: the server joins the updates of a round, aggregates them, and learns from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.clock.work import Cohort, Plan, Work, joined_work
from raysim.core.tensors import Params, floating
from raysim.methods import resolve as methods
from raysim.methods.method import CohortReport
from raysim.pruning.coverage import Coverage, count_coverage
from raysim.pruning.masks import CohortMasks, Mask
from raysim.server import optimizers
from raysim.server.fill import apply_updates
from raysim.server.updates import ClientUpdates, merge
from raysim.simulation.assignments import version_of
from raysim.simulation.cohort import view_of
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedUpdates:
    """All updates received in a round, of all versions of the model; clients in ascending order of ids.

    Attributes:
        work: The work of the clients; its cohort's round is the one that ends.
        updates: Their updates, every client weighted by its examples alone.
        masks: Masks of the submodels that each client sends back.
        coverage: Examples behind each entry.
        summed: Returns the sum of n_k s_k D_k of a tensor, by key; s_k is the weight of a stale update. D_k of a
            buffer, which is an average of values, is taken from its current value, not from that of the version k
            started from: variances stay positive.
    """

    work: Work
    updates: ClientUpdates
    masks: CohortMasks
    coverage: Coverage
    summed: Callable[[str], torch.Tensor]


def receive(
    scenario: Scenario, state: ServerState, counted: Sequence[Work], updates: Sequence[ClientUpdates]
) -> ReceivedUpdates | None:
    """Join the updates of all versions of the model; None if there are none.

    Args:
        scenario: The run.
        state: The server state before the round.
        counted: The work that counts, one entry for each version that clients started from.
        updates: Updates of these clients, one entry for each version.
    """
    if not counted:
        return None
    work = joined_work(counted)
    work = replace(work, cohort=replace(work.cohort, round=state.round + 1))
    merged = merge(updates)
    masks = sent_back(scenario, work.masks, merged)
    exponent = scenario.clock.staleness_exponent
    weights = [(1 + state.round + 1 - each.cohort.round) ** -exponent for each in counted]
    moved = [_buffers_moved(scenario, state, *each) for each in zip(counted, updates, strict=True)]

    def summed(key: str) -> torch.Tensor:
        terms = [
            weight * (sent.sums["update"].value(key) + since.get(key, 0))
            for weight, sent, since in zip(weights, updates, moved, strict=True)
        ]
        return torch.as_tensor(sum(terms[1:], start=terms[0]))

    return ReceivedUpdates(work, merged, masks, coverage_of(scenario, work.cohort, masks, merged), summed)


def learn(
    scenario: Scenario, state: ServerState, plan: Plan, received: ReceivedUpdates | None
) -> tuple[Params, Params]:
    """Return parameters and memory after a round: aggregated, stepped by the server, learned from by the method."""
    if received is None:
        return state.params, plan.memory
    params = aggregate(scenario, state.params, received)
    copied = scenario.buffers | scenario.frozen
    params, memory = optimizers.step(state.params, params, copied, received.coverage, plan.memory, scenario.server)
    return methods.learn(scenario.method, params, memory, cohort_report(scenario, state, received))


def cohort_report(scenario: Scenario, state: ServerState, received: ReceivedUpdates) -> CohortReport:
    """Return what the method sees of a round, from the state before it."""
    work = received.work
    view = view_of(scenario, state, work.cohort)
    return CohortReport(view, received.updates, received.masks, received.coverage, work.timing.total_s)


def aggregate(scenario: Scenario, params: Params, received: ReceivedUpdates) -> Params:
    """Normalise the summed updates by coverage; entries that no client trained keep their values."""
    method = scenario.method
    return apply_updates(
        params,
        scenario.buffers,
        received.summed,
        received.coverage,
        int(received.work.cohort.examples.sum()),
        method.fill,
        method.options.fill_gamma,
        average_buffers=not method.rules.static_norm,
        largest=received.updates.largest,
        frozen=scenario.frozen,
    )


def sent_back(scenario: Scenario, masks: CohortMasks, updates: ClientUpdates) -> CohortMasks:
    """Return what each client sends back, where clients cut their submodels themselves."""
    if scenario.method.rules.choose_locally is None:
        return masks
    return CohortMasks.of([Mask(kept, mask.elements) for mask, kept in zip(masks, updates.kept, strict=True)])


def coverage_of(scenario: Scenario, cohort: Cohort, masks: CohortMasks, updates: ClientUpdates) -> Coverage:
    """Return the examples behind each entry: per pair of groups, and per entry where single ones are masked."""
    owned, plan = classes_owned(scenario, cohort), scenario.workload.plan
    coverage = count_coverage(plan, masks, cohort.examples, owned)
    held = updates.sums.get("held")
    if held is None:
        return coverage
    coverage |= {key: held.value(key) for key in held.tensors}
    for key in held.tensors:
        whole = ~masks.each(partial(_has_elements, key), np.bool_)
        if whole.any():
            others = masks.take(np.flatnonzero(whole))
            classes = None if owned is None else owned[whole]
            coverage[key] = coverage[key] + count_coverage(plan, others, cohort.examples[whole], classes)[key]
    return coverage


def classes_owned(scenario: Scenario, cohort: Cohort) -> NDArray[np.bool_] | None:
    """Return which classes each client has training rows of; None where the method does not depend on it."""
    if not scenario.method.rules.own_classes_only:
        return None
    data, train = scenario.workload.data, scenario.workload.population.train
    own = scenario.workload.task.own_classes_for("own_classes_only=True")
    targets = (torch.from_numpy(data.train_targets[train[client]]) for client in cohort.clients)
    return np.stack([own.owned(each, data.num_classes).numpy() for each in targets])


def _has_elements(key: str, mask: Mask) -> bool:
    return key in mask.elements


def _buffers_moved(scenario: Scenario, state: ServerState, work: Work, updates: ClientUpdates) -> Params:
    """Return how far each buffer has moved since the version that clients started from, times their examples."""
    if work.cohort.round == state.round + 1:
        return {}
    masks = sent_back(scenario, work.masks, updates)
    coverage, start = coverage_of(scenario, work.cohort, masks, updates), version_of(state, work.cohort.round)
    now = floating({key: state.params[key] for key in scenario.buffers})
    return {key: coverage[key] * (start[key].double() - value.double()) for key, value in now.items()}
