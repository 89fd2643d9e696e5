"""One synchronous round, as a walk from selection to report."""

import numpy as np

from raysim import client_memory, diagnostics, evaluation, preparation, server_optimizers
from raysim.accounting import account, client_columns, submodel_score
from raysim.aggregation import apply_updates
from raysim.cohort import (
    Cohort,
    choose_masks,
    classes_owned,
    load_of,
    schedule_cohort,
    select,
    tasks_for,
    view_of,
)
from raysim.contribution import Contribution
from raysim.methods import resolve as methods
from raysim.methods.method import CohortReport
from raysim.pruning.coverage import Coverage, count_coverage, summarise
from raysim.scenario import Executor, Scenario
from raysim.types import Broadcast, Mask, Params, RoundReport, Score, ServerState


def run_round(scenario: Scenario, state: ServerState, executor: Executor) -> tuple[ServerState, RoundReport]:
    """Play one synchronous round, before the first one what the method prepares.

    Raises:
        RunFailedError: If a client fails or diverges.
    """
    if state.round == 0:
        state = preparation.prepare(scenario, state, executor)
    cohort = select(scenario, state)
    view = view_of(scenario, state, cohort)
    masks, memory = choose_masks(scenario, view)
    load = load_of(scenario, view, masks)
    timing = schedule_cohort(scenario, cohort, load)

    broadcast = Broadcast(cohort.round, state.params, scenario.method.rules, methods.extra(scenario.method, view))
    contribution = executor.train(tasks_for(scenario, cohort, masks, load, state.clients), broadcast)

    masks = sent_back(scenario, masks, contribution)
    coverage = coverage_of(scenario, cohort, masks, contribution)
    params = aggregate(scenario, state.params, contribution, coverage, int(cohort.examples.sum()))
    params, memory = server_optimizers.step(
        state.params, params, scenario.buffers, coverage, memory, scenario.server
    )  # fmt: skip
    report = CohortReport(view, contribution, masks, coverage, timing.total_s)
    params, memory = methods.learn(scenario.method, params, memory, report)

    params, score = score_global(scenario, params, memory, cohort.round, executor)
    clients = client_columns(scenario, cohort, masks, load, timing, contribution)
    totals = account(scenario, state.totals, cohort, clients, score)
    summary = summarise(coverage, params, masks, int(cohort.examples.sum()))
    remembered = client_memory.updated(state.clients, contribution.memories)
    after = ServerState(cohort.round, params, memory, totals, remembered)
    due = diagnostics.is_due(scenario, cohort.round)
    return after, RoundReport(
        round=cohort.round,
        timestamp_ms=0,
        wall_s=0.0,
        round_s=float(timing.total_s.max()),
        totals=totals,
        train_loss=float(np.average(clients["train_loss"].astype(np.float64), weights=cohort.examples)),
        submodel=submodel_score(clients),
        score=score,
        coverage=summary,
        clients=clients,
        tiers=scenario.workload.population.devices.tiers,
        diagnostics=diagnostics.diagnose(scenario, state, after, cohort, masks) if due else {},
    )


def sent_back(scenario: Scenario, masks: list[Mask], contribution: Contribution) -> list[Mask]:
    """Return what each client sends back, where clients cut their submodels themselves."""
    if scenario.method.rules.choose_locally is None:
        return masks
    return [Mask(kept, mask.elements) for mask, kept in zip(masks, contribution.kept, strict=True)]


def coverage_of(scenario: Scenario, cohort: Cohort, masks: list[Mask], contribution: Contribution) -> Coverage:
    """Return the examples behind each entry: per pair of groups, and per entry where single ones are masked."""
    owned, plan = classes_owned(scenario, cohort), scenario.workload.plan
    coverage = count_coverage(plan, masks, cohort.examples, owned)
    held = contribution.sums.get("held")
    if held is None:
        return coverage
    coverage |= {key: held.value(key) for key in held.totals}
    for key in held.totals:
        whole = np.array([key not in mask.elements for mask in masks])
        if whole.any():
            others = [mask for mask, is_whole in zip(masks, whole, strict=True) if is_whole]
            classes = None if owned is None else owned[whole]
            coverage[key] = coverage[key] + count_coverage(plan, others, cohort.examples[whole], classes)[key]
    return coverage


def aggregate(
    scenario: Scenario, params: Params, contribution: Contribution, coverage: Coverage, total: int
) -> Params:
    """Normalise the summed updates by coverage and fill what nobody trained."""
    method = scenario.method
    return apply_updates(
        params, scenario.buffers, contribution.sums["update"], coverage, total, method.fill,
        method.options.fill_gamma, average_buffers=not method.rules.static_norm,
    )  # fmt: skip


def score_global(
    scenario: Scenario, params: Params, memory: Params, round: int, executor: Executor
) -> tuple[Params, Score | None]:
    """Score the global model where it is due; under static BatchNorm re-estimate its statistics first."""
    if round % scenario.score_every and round != scenario.rounds:
        return params, None
    served = methods.served(scenario.method, scenario.workload.plan, params, memory)
    if scenario.method.rules.static_norm and evaluation.batch_norms(scenario.workload.model):
        buffers = executor.estimate_statistics(served, scenario.statistics_rows)
        params, served = params | buffers, served | buffers
    return params, executor.score(served, scenario.test_rows)


def initial_state(scenario: Scenario) -> ServerState:
    """Return the state before round 1: the model as it was built."""
    params = {key: tensor.detach().clone() for key, tensor in scenario.workload.model.state_dict().items()}
    return ServerState(round=0, params=params)
