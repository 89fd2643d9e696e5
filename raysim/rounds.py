"""One synchronous round, as a walk from selection to report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raysim import evaluation, methods, seeding, selection
from raysim.aggregation import FILLS, apply_updates
from raysim.client_step import Contribution, Workload
from raysim.clock import CohortLoad, schedule
from raysim.estimators import CohortReport
from raysim.methods import Method, Ranking
from raysim.pruning import masks as mask_rules
from raysim.pruning.costs import CostTable
from raysim.pruning.coverage import count_coverage, summarise
from raysim.types import (
    ClientTask,
    CohortTiming,
    Columns,
    Mask,
    Params,
    RoundReport,
    Score,
    ServerState,
    Totals,
)  # fmt: skip


class Executor(Protocol):
    """Runs what a round asks for; what comes out does not depend on where."""

    def train(self, tasks: Sequence[ClientTask], params: Params, round: int) -> Contribution:
        """Train all clients of a cohort."""
        ...

    def score(self, params: Params, rows: NDArray[np.int64]) -> Score:
        """Score the global model on test rows."""
        ...

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64]) -> Params:
        """Re-estimate the global model's running statistics on training rows."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """Everything a run needs besides its state and an executor.

    Attributes:
        workload: What the clients need.
        method: The pruning method with its options.
        costs: What submodels cost.
        cohort_size: Clients per round.
        rounds: Number of rounds.
        score_every: Rounds between two scorings of the global model.
        test_rows: Test rows it is scored on.
        statistics_rows: Training rows its running statistics are re-estimated on, where the method asks.
        scored_share: Share of a cohort whose submodels are scored.
    """

    workload: Workload
    method: Method
    costs: CostTable
    cohort_size: int
    rounds: int
    score_every: int
    test_rows: NDArray[np.int64]
    statistics_rows: NDArray[np.int64]
    scored_share: float


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Who takes part in a round and with how much of the model, arrays `(cohort,)`."""

    round: int
    clients: NDArray[np.int64]
    tier_of: NDArray[np.int64]
    keep_ratios: NDArray[np.float64]
    limited_by: NDArray[np.str_]
    examples: NDArray[np.int64]


def run_round(scenario: Scenario, state: ServerState, executor: Executor) -> tuple[ServerState, RoundReport]:
    """Play one synchronous round.

    Raises:
        RunFailedError: If a client fails or diverges.
    """
    cohort = select(scenario, state.round + 1)
    masks, memory = choose_masks(scenario, state, cohort)
    load = load_of(scenario, cohort, masks)
    timing = schedule_cohort(scenario, cohort, load)

    contribution = executor.train(tasks_for(scenario, cohort, masks, load), state.params, cohort.round)

    coverage = count_coverage(scenario.workload.plan, masks, cohort.examples, classes_owned(scenario, cohort))
    params = aggregate(scenario, state.params, contribution, coverage, int(cohort.examples.sum()))
    report = CohortReport(contribution, masks, cohort.examples, coverage)
    memory = methods.learn(scenario.method, memory, report)

    params, score = score_global(scenario, params, cohort.round, executor)
    clients = client_columns(scenario, cohort, masks, load, timing, contribution)
    totals = account(scenario, state.totals, cohort, clients, score)
    summary = summarise(coverage, params, masks, int(cohort.examples.sum()))
    after = ServerState(cohort.round, params, memory, totals)
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
        tiers=tuple(tier.device.name for tier in scenario.workload.population.tiers),
    )


def select(scenario: Scenario, round: int) -> Cohort:
    """Draw the round's cohort and give each member its budget."""
    population = scenario.workload.population
    clients = selection.uniform(len(population), scenario.cohort_size, round, scenario.workload.seed)
    tier_of = population.tier_of[clients]
    by_tier = [scenario.method.budget(tier) for tier in population.tiers]
    return Cohort(
        round,
        clients,
        tier_of,
        keep_ratios=np.array([budget.keep_ratio for budget in by_tier])[tier_of],
        limited_by=np.array([budget.limited_by for budget in by_tier])[tier_of],
        examples=population.train.counts[clients],
    )


def choose_masks(scenario: Scenario, state: ServerState, cohort: Cohort) -> tuple[list[Mask], Params]:
    """Rank the channels and keep, for each client, as many of the best as its budget allows."""
    workload = scenario.workload
    ranking = Ranking(
        workload.plan, state.params, state.memory, scenario.method.options, cohort.clients, cohort.round,
        workload.seed,
    )  # fmt: skip
    scores, memory = methods.rank(scenario.method, ranking)
    return mask_rules.keep_top_for_cohort(workload.plan, scores, cohort.keep_ratios), memory


def load_of(scenario: Scenario, cohort: Cohort, masks: Sequence[Mask]) -> CohortLoad:
    """Count what each client transfers and computes for its own submodel."""
    local = scenario.workload.local
    costs = [scenario.costs.of(mask) for mask in masks]
    transfers = np.array([transfer_bytes(scenario, mask) for mask in masks], dtype=np.int64)
    rows_trained = cohort.examples * local.epochs
    return CohortLoad(
        down_bytes=transfers[:, 0],
        up_bytes=transfers[:, 1],
        train_flops=rows_trained * np.array([cost.train_flops for cost in costs], dtype=np.int64),
        activation_bytes=rows_trained * np.array([cost.activation_bytes for cost in costs], dtype=np.int64),
        steps=np.array([local.num_steps(int(examples)) for examples in cohort.examples], dtype=np.int64),
    )


def transfer_bytes(scenario: Scenario, mask: Mask) -> tuple[int, int]:
    """Return the bytes that travel down and up for one client.

    Down: the submodel and, where it is cut, one bit per channel that tells which. Up: the submodel and the
    channel sums the method asks for; the server knows the mask.
    """
    model_bytes = scenario.costs.of(mask).model_bytes
    mask_bytes = 0 if mask.is_dense else -(-scenario.workload.plan.num_units // 8)
    return model_bytes + mask_bytes, model_bytes + methods.score_bytes(scenario.method, mask)


def schedule_cohort(scenario: Scenario, cohort: Cohort, load: CohortLoad) -> CohortTiming:
    """Compute when each client will be done."""
    tiers = scenario.workload.population.tiers
    devices = [tiers[tier].device for tier in cohort.tier_of]
    return schedule(load, devices, cohort.clients, cohort.round, scenario.workload.seed)


def tasks_for(scenario: Scenario, cohort: Cohort, masks: Sequence[Mask], load: CohortLoad) -> list[ClientTask]:
    """Build the clients' tasks; a share of them, drawn from the seed, is scored on held-out rows."""
    size = len(cohort.clients)
    rng = seeding.generator(scenario.workload.seed, "scored clients", cohort.round)
    scored = np.zeros(size, dtype=np.bool_)
    scored[rng.permutation(size)[: round(size * scenario.scored_share)]] = True
    return [
        ClientTask(int(client), mask, float(keep_ratio), bool(is_scored), float(flops))
        for client, mask, keep_ratio, is_scored, flops in zip(
            cohort.clients, masks, cohort.keep_ratios, scored, load.train_flops, strict=True
        )
    ]


def classes_owned(scenario: Scenario, cohort: Cohort) -> NDArray[np.bool_] | None:
    """Return which classes each client has training rows of, where the method looks at that."""
    if not scenario.method.rules.own_classes_only:
        return None
    data, train = scenario.workload.data, scenario.workload.population.train
    owned = np.zeros((len(cohort.clients), data.num_classes), dtype=np.bool_)
    for place, client in enumerate(cohort.clients):
        owned[place, data.train_labels[train[client]]] = True
    return owned


def aggregate(scenario: Scenario, params: Params, contribution: Contribution, coverage: Params, total: int) -> Params:
    """Normalise the summed updates by coverage and fill what nobody trained."""
    options = scenario.method.options
    buffers = frozenset(key for key, _ in scenario.workload.model.named_buffers())
    return apply_updates(
        params, buffers, contribution.sums["update"], coverage, total, FILLS[options.fill],
        options.fill_gamma, average_buffers=not scenario.method.rules.static_norm,
    )  # fmt: skip


def score_global(scenario: Scenario, params: Params, round: int, executor: Executor) -> tuple[Params, Score | None]:
    """Score the global model where it is due; under static BatchNorm re-estimate its statistics first."""
    if round % scenario.score_every and round != scenario.rounds:
        return params, None
    if scenario.method.rules.static_norm and evaluation.batch_norms(scenario.workload.model):
        params = params | executor.estimate_statistics(params, scenario.statistics_rows)
    return params, executor.score(params, scenario.test_rows)


def client_columns(
    scenario: Scenario, cohort: Cohort, masks: Sequence[Mask], load: CohortLoad, timing: CohortTiming,
    contribution: Contribution,
) -> Columns:  # fmt: skip
    """Return the round's table: one row per client."""
    tiers = np.array([tier.device.name for tier in scenario.workload.population.tiers])
    reported = {name: column for name, column in contribution.clients.items() if name != "client"}
    return {
        "round": np.full(len(cohort.clients), cohort.round),
        "client": cohort.clients,
        "tier": tiers[cohort.tier_of],
        "keep_ratio": cohort.keep_ratios,
        "limited_by": cohort.limited_by,
        "examples": cohort.examples,
        "steps": load.steps,
        **reported,
        **cost_columns(scenario, masks, load, timing),
    }


def cost_columns(scenario: Scenario, masks: Sequence[Mask], load: CohortLoad, timing: CohortTiming) -> Columns:
    """Return what each client's submodel is and costs: known before anybody trains."""
    return {
        "pruning_ratio": np.array([scenario.costs.pruning_ratio(mask) for mask in masks]),
        "down_bytes": load.down_bytes,
        "up_bytes": load.up_bytes,
        "train_flops": load.train_flops,
        "download_s": timing.download_s,
        "compute_s": timing.compute_s,
        "upload_s": timing.upload_s,
        "total_s": timing.total_s,
    }


def submodel_score(clients: Columns) -> Score | None:
    """Return the mean accuracy and loss of the scored submodels, every client counting once."""
    accuracy = clients["accuracy"].astype(np.float64)
    scored = ~np.isnan(accuracy)
    if not scored.any():
        return None
    return Score(float(accuracy[scored].mean()), float(clients["heldout_loss"][scored].astype(np.float64).mean()))


def account(scenario: Scenario, totals: Totals, cohort: Cohort, clients: Columns, score: Score | None) -> Totals:
    """Add the round to what the run has spent, and to what dense clients would have spent on its cohorts."""
    dense, size = scenario.costs.dense, len(cohort.clients)
    dense_flops = dense.train_flops * int(cohort.examples.sum()) * scenario.workload.local.epochs
    best = totals.best_accuracy
    if score is not None:
        best = score.accuracy if best is None else max(best, score.accuracy)
    return replace(
        totals,
        down_bytes=totals.down_bytes + int(clients["down_bytes"].sum()),
        up_bytes=totals.up_bytes + int(clients["up_bytes"].sum()),
        train_flops=totals.train_flops + int(clients["train_flops"].sum()),
        fedavg_down_bytes=totals.fedavg_down_bytes + dense.model_bytes * size,
        fedavg_up_bytes=totals.fedavg_up_bytes + dense.model_bytes * size,
        fedavg_train_flops=totals.fedavg_train_flops + dense_flops,
        client_rounds=totals.client_rounds + size,
        pruning_ratio_sum=totals.pruning_ratio_sum + float(clients["pruning_ratio"].sum()),
        simulated_s=totals.simulated_s + float(clients["total_s"].max()),
        accuracy=totals.accuracy if score is None else score.accuracy,
        best_accuracy=best,
    )


def initial_state(scenario: Scenario) -> ServerState:
    """Return the state before round 1: the model as it was built."""
    params = {key: tensor.detach().clone() for key, tensor in scenario.workload.model.state_dict().items()}
    return ServerState(round=0, params=params)
