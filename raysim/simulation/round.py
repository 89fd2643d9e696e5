"""One round, as a walk from plan to report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.client import evaluation
from raysim.client.assignments import Assignments, Broadcast
from raysim.client.packing import packed
from raysim.clock import energy
from raysim.clock.outcomes import COUNTED
from raysim.clock.work import Absent, Cohort, Plan, Work, joined_work, unfinished
from raysim.core.tensors import Columns, Params
from raysim.methods import resolve as methods
from raysim.methods.method import CohortReport
from raysim.pruning.coverage import Coverage, CoverageSummary, channel_columns, count_coverage, summarise
from raysim.pruning.masks import CohortMasks, Mask
from raysim.selection import table as selection
from raysim.server import optimizers
from raysim.server.fill import apply_updates
from raysim.server.updates import ClientUpdates, merge
from raysim.simulation import async_planning, client_state, diagnostics, preparation
from raysim.simulation.accounting import client_columns, in_order, mean_loss, reach, scored, spend, submodel_score
from raysim.simulation.cohort import assignments_of, choose_masks, classes_owned, view_of
from raysim.simulation.planning import ChooseMasks, plan_together
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import RoundReport, Score, ServerState, Totals

NOTHING_TRAINED = CoverageSummary(mean=0.0, min=0.0, untrained_share=1.0, untrained_channel_share=1.0)


def run_round(scenario: Scenario, state: ServerState, executor: Executor) -> tuple[ServerState, RoundReport]:
    """Play one round, before the first one what the method prepares.

    Synchronous or not, what is trained, put back and aggregated is the same.

    Raises:
        RunFailedError: If a client fails or diverges.
    """
    if state.round == 0:
        state = preparation.prepare(scenario, state, executor)
    plan = plan_round(scenario, state)

    counted = [work.counted for work in plan.ended]
    counted = [work for work in counted if len(work)]
    contributions = executor.train_versions([group_of(scenario, state, work) for work in counted])
    received = receive(scenario, state, counted, contributions) if counted else None
    params, memory = learn(scenario, state, plan.memory, received)

    reported = () if received is None else (received.contribution, received.masks)
    clients = client_columns(scenario, state, plan, *reported)
    totals = spend(scenario, state.totals, plan, clients)
    after = moved_on(scenario, state, plan, params, memory, totals, clients, received)
    params, score = score_global(scenario, after, executor)
    after = replace(after, params=params, totals=scored(totals, score))
    after, clients = close(scenario, after, clients)
    after = replace(after, totals=reach(after.totals, score, scenario.targets, after.round))
    return after, report_of(scenario, state, after, plan, clients, score, received, executor.incidents())


def plan_round(scenario: Scenario, state: ServerState, choose: ChooseMasks = choose_masks) -> Plan:
    """Decide who starts, who ends, and when the round is over."""
    plan = async_planning.plan_buffer if scenario.clock.mode == "async" else plan_together
    return plan(scenario, state, choose)


def group_of(scenario: Scenario, state: ServerState, work: Work) -> tuple[Assignments, Broadcast]:
    """Return the assignments of clients that started from one version, and what they received."""
    view = view_of(scenario, state, work.cohort)
    extra = methods.extra(scenario.method, view)
    start = Broadcast(work.cohort.round, version_of(state, work.cohort.round), scenario.method.rules, extra)
    assignments = assignments_of(scenario, work.cohort, work.masks, work.load, state.clients)
    return packed(assignments, work.cohort.examples, scenario.workload.local.batch_size, state.pack_size), start


def version_of(state: ServerState, round: int) -> Params:
    """Return the global parameters that clients starting in a round received."""
    return state.params if round == state.round + 1 else state.versions[round]


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """All that came in during a round, of all versions; members in ascending order of ids.

    Attributes:
        work: What the clients did; its cohort's round is the one that ends.
        contribution: What they sent, every client counting with its examples alone.
        masks: What each sent back.
        coverage: Examples behind each entry.
        summed: The sum of n_k s_k D_k of a tensor, by key; s_k is the weight of a stale update. D_k of a buffer,
            which is an average of values, is taken from its current value, not from that of the version k started
            from: variances stay positive.
    """

    work: Work
    contribution: ClientUpdates
    masks: CohortMasks
    coverage: Coverage
    summed: Callable[[str], torch.Tensor]


def receive(
    scenario: Scenario, state: ServerState, counted: Sequence[Work], contributions: Sequence[ClientUpdates]
) -> Received:
    """Join what clients of all versions sent."""
    work = joined_work(counted)
    work = replace(work, cohort=replace(work.cohort, round=state.round + 1))
    contribution = merge(contributions)
    masks = sent_back(scenario, work.masks, contribution)
    exponent = scenario.clock.staleness_exponent
    weights = [(1 + state.round + 1 - each.cohort.round) ** -exponent for each in counted]

    moved = [buffers_moved(scenario, state, *each) for each in zip(counted, contributions, strict=True)]

    def summed(key: str) -> torch.Tensor:
        terms = [
            weight * (sent.sums["update"].value(key) + since.get(key, 0))
            for weight, sent, since in zip(weights, contributions, moved, strict=True)
        ]
        return torch.as_tensor(sum(terms[1:], start=terms[0]))

    coverage = coverage_of(scenario, work.cohort, masks, contribution)
    return Received(work, contribution, masks, coverage, summed)


def buffers_moved(
    scenario: Scenario, state: ServerState, work: Work, contribution: ClientUpdates
) -> Params:  # fmt: skip
    """Return how far each buffer has moved since the version that clients started from, times their examples."""
    if work.cohort.round == state.round + 1:
        return {}
    masks = sent_back(scenario, work.masks, contribution)
    coverage, start = coverage_of(scenario, work.cohort, masks, contribution), version_of(state, work.cohort.round)
    return {key: coverage[key] * (start[key].double() - state.params[key].double()) for key in scenario.buffers}


def learn(
    scenario: Scenario, state: ServerState, memory: Params, received: Received | None
) -> tuple[Params, Params]:  # fmt: skip
    """Return parameters and memory after a round: aggregated, stepped by the server, learned from."""
    if received is None:
        return state.params, memory
    work = received.work
    params = aggregate(scenario, state.params, received, int(work.cohort.examples.sum()))
    params, memory = optimizers.step(
        state.params, params, scenario.buffers, received.coverage, memory, scenario.server
    )  # fmt: skip
    view = view_of(scenario, state, work.cohort)
    report = CohortReport(view, received.contribution, received.masks, received.coverage, work.timing.total_s)
    return methods.learn(scenario.method, params, memory, report)


def moved_on(
    scenario: Scenario, state: ServerState, plan: Plan, params: Params, memory: Params, totals: Totals,
    clients: Columns, received: Received | None,
) -> ServerState:  # fmt: skip
    """Return the state after a round, but for its score."""
    memories = {} if received is None else received.contribution.memories
    return ServerState(
        state.round + 1, params, memory, totals, client_state.updated(state.clients, memories),
        history=remember(scenario, state, plan, clients),
        in_flight=plan.in_flight,
        versions={work.cohort.round: version_of(state, work.cohort.round) for work in plan.in_flight},
        pack_size=state.pack_size,
    )  # fmt: skip


def remember(
    scenario: Scenario, state: ServerState, plan: Plan, clients: Columns
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Return what is remembered of every client: for the selection rule, and what is left in its battery."""
    history = selection.remember(
        scenario.selection, state.history, clients["client"], clients["train_loss"],
        np.where(clients["fate"] == COUNTED, clients["total_s"], np.nan), state.round + 1,
    )  # fmt: skip
    ends_s = state.totals.simulated_s + plan.round_s - scenario.clock.server_s
    return energy.remembered(
        scenario.workload.population.devices, {**state.history, **history}, clients,
        None if scenario.clock.mode == "async" else ends_s,
    )  # fmt: skip


def close(scenario: Scenario, after: ServerState, clients: Columns) -> tuple[ServerState, Columns]:
    """Return state and table of a round; if it is the last, work that would go on ends unfinished."""
    if not (after.in_flight and scenario.is_over(after)):
        return after, clients
    works = [unfinished(work, after.totals.simulated_s) for work in after.in_flight]
    rest = Plan(tuple(works), Absent.nobody(), (), 0.0, after.memory)
    rows = client_columns(scenario, replace(after, round=after.round - 1), rest)
    totals = replace(spend(scenario, after.totals, rest, rows), empty_rounds=after.totals.empty_rounds)
    return replace(after, totals=totals, in_flight=(), versions={}), in_order([clients, rows], after.round)


def report_of(
    scenario: Scenario, before: ServerState, after: ServerState, plan: Plan, clients: Columns,
    score: Score | None, received: Received | None, incidents: tuple[str, ...],
) -> RoundReport:  # fmt: skip
    """Return all that a tracker sees of a round."""
    coverage, diagnosed = NOTHING_TRAINED, {}
    trained = () if received is None else (received.masks, received.work.cohort.examples)
    channels = channel_columns(scenario.workload.plan, after.round, *trained)
    if received is not None:
        cohort, masks = received.work.cohort, received.masks
        coverage = summarise(received.coverage, after.params, channels["clients"] > 0, int(cohort.examples.sum()))
        if diagnostics.is_due(scenario, after.round):
            diagnosed = diagnostics.diagnose(scenario, before, after, cohort, masks)
    return RoundReport(
        round=after.round,
        timestamp_ms=0,
        wall_s=0.0,
        round_s=plan.round_s,
        totals=after.totals,
        train_loss=mean_loss(clients),
        submodel=submodel_score(clients),
        score=score,
        coverage=coverage,
        clients=clients,
        tiers=scenario.workload.population.devices.tiers,
        channels=channels,
        diagnostics=diagnosed,
        is_asynchronous=scenario.clock.mode == "async",
        incidents=incidents,
    )


def sent_back(scenario: Scenario, masks: CohortMasks, contribution: ClientUpdates) -> CohortMasks:
    """Return what each client sends back, where clients cut their submodels themselves."""
    if scenario.method.rules.choose_locally is None:
        return masks
    return CohortMasks.of([Mask(kept, mask.elements) for mask, kept in zip(masks, contribution.kept, strict=True)])


def coverage_of(scenario: Scenario, cohort: Cohort, masks: CohortMasks, contribution: ClientUpdates) -> Coverage:
    """Return the examples behind each entry: per pair of groups, and per entry where single ones are masked."""
    owned, plan = classes_owned(scenario, cohort), scenario.workload.plan
    coverage = count_coverage(plan, masks, cohort.examples, owned)
    held = contribution.sums.get("held")
    if held is None:
        return coverage
    coverage |= {key: held.value(key) for key in held.totals}
    for key in held.totals:
        whole = ~masks.each(partial(has_elements, key), np.bool_)
        if whole.any():
            others = masks.take(np.flatnonzero(whole))
            classes = None if owned is None else owned[whole]
            coverage[key] = coverage[key] + count_coverage(plan, others, cohort.examples[whole], classes)[key]
    return coverage


def has_elements(key: str, mask: Mask) -> bool:
    """Whether a mask tells which entries of a tensor are kept."""
    return key in mask.elements


def aggregate(scenario: Scenario, params: Params, received: Received, total: int) -> Params:
    """Normalise the summed updates by coverage and fill what nobody trained."""
    method = scenario.method
    return apply_updates(
        params, scenario.buffers, received.summed, received.coverage, total, method.fill, method.options.fill_gamma,
        average_buffers=not method.rules.static_norm,
    )  # fmt: skip


def score_global(scenario: Scenario, after: ServerState, executor: Executor) -> tuple[Params, Score | None]:
    """Score the global model where it is due; under static BatchNorm re-estimate its statistics first."""
    params = after.params
    if after.round % scenario.score_every and not scenario.is_over(after):
        return params, None
    served = methods.served(scenario.method, scenario.workload.plan, params, after.memory)
    if scenario.method.rules.static_norm and evaluation.batch_norms(scenario.workload.model):
        buffers = executor.estimate_statistics(served, scenario.statistics_rows)
        params, served = params | buffers, served | buffers
    return params, Score.of(scenario.workload.task, executor.score(served, scenario.test_rows))


def initial_state(scenario: Scenario) -> ServerState:
    """Return the state before round 1: the model as it was built."""
    params = {key: tensor.detach().clone() for key, tensor in scenario.workload.model.state_dict().items()}
    history = selection.initial_history(scenario.selection, len(scenario.workload.population))
    return ServerState(round=0, params=params, history=history, pack_size=scenario.pack_size)
