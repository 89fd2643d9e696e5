"""Accounting: the table of clients of a round, and the totals of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysim.clock import energy, outcomes
from raysim.clock.modes import ClockRules
from raysim.clock.timing import CohortLoad, CohortTiming
from raysim.clock.work import Absent, Plan, Work, completed_share
from raysim.config.metric import PrimaryMetric
from raysim.core.tensors import Columns
from raysim.population.profiles import Devices
from raysim.pruning.masks import Mask
from raysim.server.updates import ClientUpdates
from raysim.simulation.aggregation import ReceivedUpdates
from raysim.simulation.evaluation import Evaluation
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import Chosen, Reached, Score, ServerState, Totals


def reported(primary: PrimaryMetric) -> dict[str, float]:
    """Return the columns that clients report, with the values recorded for clients whose work does not count."""
    return {"train_loss": np.nan, "epochs": 0, primary.name: np.nan, "heldout_loss": np.nan}


def client_columns(
    scenario: Scenario, state: ServerState, plan: Plan, received: ReceivedUpdates | None = None
) -> Columns:
    """Return the round's table: one row per client that was selected or whose work ended, in the order of ids.

    Bytes, FLOPs and steps are those spent; the `planned_` columns are those of the whole work.

    Args:
        scenario: The run.
        state: The state the round started from.
        plan: The round.
        received: The updates that count. None: there are none.
    """
    round, population = state.round + 1, scenario.workload.population
    waits_s = waiting_s(scenario.clock, plan, state.totals.simulated_s)
    tables = [work_columns(scenario, state, *each) for each in zip(plan.ended, waits_s, strict=True)]
    examples = population.train.counts_of(plan.absent.clients)
    absent = absent_columns(population.devices, plan.absent, examples, round)
    none = np.zeros(len(examples), dtype=np.int64)
    maskless = {"pruning_ratio": none + np.nan, "theoretical_train_flops": none}
    table = in_order([*tables, absent | maskless], round)
    table["flops_per_s"] = population.devices.of(table["client"]).column("flops_per_s")
    if received is None:
        return table | _reported(table, None, scenario.primary)
    table["pruning_ratio"][table["fate"] == outcomes.COUNTED] = received.masks.each(
        scenario.costs.pruning_ratio, np.float64
    )
    return table | _reported(table, received.updates, scenario.primary)


def in_order(tables: Sequence[Columns], round: int) -> Columns:
    """Return tables with equal columns as one, in the order of ids."""
    table = {name: np.concatenate([columns[name] for columns in tables]) for name in tables[0]}
    order = np.argsort(table["client"], kind="stable")
    return {"round": np.full(len(order), round), **{name: column[order] for name, column in table.items()}}


def waiting_s(rules: ClockRules, plan: Plan, now_s: float) -> list[NDArray[np.float64]]:
    """Return for each entry of work the seconds its clients wait for the end of the round.

    Clients that have stopped do not wait, nor do any in asynchronous rounds.

    Args:
        rules: Clock mode and server seconds.
        plan: The round's plan.
        now_s: Simulated time at which it began.
    """
    ends_s, waited = now_s + plan.round_s - rules.server_s, rules.mode.waits_for_end
    return [
        np.where((work.outcomes == outcomes.COUNTED) & waited, np.maximum(ends_s - work.end_s, 0), 0.0)
        for work in plan.ended
    ]


def work_columns(scenario: Scenario, state: ServerState, work: Work, waits_s: NDArray[np.float64]) -> Columns:
    """Return the columns of some clients' work: what they do, and what they have spent at its end."""
    owned = scenario.workload.population.devices
    return {
        **clock_columns(owned, state.history, work, waits_s),
        "pruning_ratio": work.masks.each(scenario.costs.pruning_ratio, np.float64),
        "theoretical_train_flops": theoretical_flops(scenario, work),
    }


def clock_columns(
    owned: Devices, history: Mapping[str, NDArray[np.float64]], work: Work, waits_s: NDArray[np.float64]
) -> Columns:
    """Return the columns that do not depend on which channels are trained: sizes, seconds and energy.

    Args:
        owned: Devices of all clients.
        history: Columns kept of all of them, at the start of the round.
        work: Work of some of them.
        waits_s: Seconds that each of these clients waits afterwards.
    """
    cohort, spent, timing = work.cohort, work.spent, work.timing
    devices = owned.of(cohort.clients)
    level_j = energy.levels_j(devices, history, cohort.clients, work.start_s)
    return {
        "client": cohort.clients,
        "tier": np.array(devices.tiers)[devices.tier_of],
        "fate": work.outcomes,
        "started_round": np.full(len(work), cohort.round),
        "start_s": work.start_s,
        "lasts_s": work.duration_s,
        "keep_ratio": cohort.keep_ratios,
        "limited_by": cohort.limited_by,
        "examples": cohort.examples,
        "steps": spent.steps,
        "down_bytes": spent.down_bytes,
        "up_bytes": spent.up_bytes,
        "train_flops": spent.train_flops,
        "download_s": timing.download_s,
        "compute_s": timing.compute_s,
        "upload_s": timing.upload_s,
        "total_s": timing.total_s,
        "energy_j": energy.spent_j(devices, work, waits_s, level_j),
        "planned_down_bytes": work.load.down_bytes,
        "planned_up_bytes": work.load.up_bytes,
        "planned_train_flops": work.load.train_flops,
        "planned_activation_bytes": work.load.activation_bytes,
        "planned_steps": work.load.steps,
        "planned_epochs": cohort.epochs,
    }


def absent_columns(owned: Devices, absent: Absent, examples: NDArray[np.int64], round: int) -> Columns:
    """Return the rows of clients that were selected and did not start: they spend nothing.

    Args:
        owned: Devices of all clients.
        absent: The clients.
        examples: Their training rows, `(absent,)`.
        round: Counted from 1.
    """
    devices = owned.of(absent.clients)
    zeros, none = np.zeros(len(absent.clients)), np.zeros(len(absent.clients), dtype=np.int64)
    return {
        "client": absent.clients,
        "tier": np.array(devices.tiers)[devices.tier_of],
        "fate": absent.outcomes,
        "started_round": np.full(len(none), round),
        "start_s": absent.selected_s,
        "lasts_s": zeros,
        "keep_ratio": zeros,
        "limited_by": absent.limited_by,
        "examples": examples,
        "steps": none,
        **dict.fromkeys(("down_bytes", "up_bytes", "train_flops"), none),
        **dict.fromkeys(("download_s", "compute_s", "upload_s", "total_s", "energy_j"), zeros),
        **dict.fromkeys((f"planned_{name}" for name in (*CohortLoad.__slots__, "epochs")), none),
    }


def _reported(table: Columns, updates: ClientUpdates | None, primary: PrimaryMetric) -> Columns:
    """Return what clients report, as columns of the round's table."""
    size, columns = len(table["client"]), {}
    for name, missing in reported(primary).items():
        columns[name] = np.full(size, missing)
    if updates is not None:
        counted = table["fate"] == outcomes.COUNTED
        for name, column in updates.clients.items():
            if name != "client":
                columns.setdefault(name, np.full(size, np.nan))[counted] = column
    return columns


def counted_rows(clients: Columns) -> Columns:
    """Return the rows of the clients whose work counts."""
    counted = clients["fate"] == outcomes.COUNTED
    return {name: column[counted] for name, column in clients.items()}


def submodel_score(clients: Columns, primary: PrimaryMetric) -> Score | None:
    """Return the mean primary metric and loss of the scored submodels; every client counts once."""
    values = clients[primary.name].astype(np.float64)
    scored = ~np.isnan(values)
    if not scored.any():
        return None
    return Score(float(values[scored].mean()), float(clients["heldout_loss"][scored].astype(np.float64).mean()))


def mean_loss(clients: Columns) -> float:
    """Return the mean training loss of the clients whose work counts, weighted by their rows; NaN without any."""
    counted = counted_rows(clients)
    if not len(counted["client"]):
        return float("nan")
    return float(np.average(counted["train_loss"].astype(np.float64), weights=counted["examples"]))


def add_round(totals: Totals, plan: Plan, clients: Columns) -> Totals:
    """Add a round to the totals of the run.

    Args:
        totals: Totals before the round.
        plan: The round's plan.
        clients: Its table of clients.
    """
    counted = counted_rows(clients)
    numbers = dict(totals.outcomes)
    for outcome, number in zip(*np.unique(clients["fate"], return_counts=True), strict=True):
        numbers[str(outcome)] = numbers.get(str(outcome), 0) + int(number)
    return replace(
        totals,
        down_bytes=totals.down_bytes + int(clients["down_bytes"].sum()),
        up_bytes=totals.up_bytes + int(clients["up_bytes"].sum()),
        train_flops=totals.train_flops + int(clients["train_flops"].sum()),
        client_rounds=totals.client_rounds + len(counted["client"]),
        pruning_ratio_sum=totals.pruning_ratio_sum + float(counted["pruning_ratio"].sum()),
        simulated_s=totals.simulated_s + plan.round_s,
        energy_j=totals.energy_j + float(clients["energy_j"].sum()),
        empty_rounds=totals.empty_rounds + int(not len(counted["client"])),
        outcomes=numbers,
    )


def with_evaluation(totals: Totals, evaluated: Evaluation, round: int, metric: PrimaryMetric) -> Totals:
    """Record the scores of the global model, and the FLOPs by which its statistics were estimated anew."""
    scored = with_scores(totals, evaluated.score, evaluated.validation, round, metric)
    return replace(scored, statistics_flops=scored.statistics_flops + evaluated.statistics_flops)


def with_scores(
    totals: Totals, score: Score | None, validation: Score | None, round: int, metric: PrimaryMetric
) -> Totals:
    """Record the scores of the global model, and the best ones so far.

    The best score is that on the test rows; the chosen one is of the round that is best on the validation rows.
    """
    if score is None:
        return totals
    chosen = totals.chosen
    best = score.primary if totals.best_primary is None else metric.best([totals.best_primary, score.primary])
    if validation is not None and (chosen is None or metric.is_better(validation.primary, chosen.validation_primary)):
        chosen = Chosen(round, validation.primary, score.primary)
    return replace(
        totals,
        primary=score.primary,
        best_primary=best,
        validation_primary=None if validation is None else validation.primary,
        further=_further_of(score, validation),
        chosen=chosen,
    )


def _further_of(score: Score, validation: Score | None) -> dict[str, dict[str, float | None]]:
    """Return further metrics by kind of rows, ready for JSON; None: not defined."""
    found = {"test": score.further} | ({} if validation is None else {"validation": validation.further})
    return {
        rows: {name: None if np.isnan(value) else value for name, value in metrics.items()}
        for rows, metrics in found.items()
        if metrics
    }


def with_targets(
    totals: Totals, score: Score | None, targets: Sequence[float], round: int, metric: PrimaryMetric
) -> Totals:
    """Record the targets that are reached for the first time, and what had been spent by then."""
    known = {reached.primary for reached in totals.reached}
    spent = (totals.simulated_s, totals.down_bytes + totals.up_bytes, totals.train_flops, totals.energy_j)
    reached = [
        Reached(target, round, *spent)
        for target in targets
        if score is not None and target not in known and metric.reaches(score.primary, target)
    ]
    return replace(totals, reached=(*totals.reached, *reached))


def theoretical_flops(scenario: Scenario, work: Work) -> NDArray[np.int64]:
    """Return each client's FLOPs if hardware skipped every pruned weight, `(clients,)`; none does today."""

    def saved(mask: Mask) -> int:
        pruned = scenario.costs.pruned_elements(mask)
        return round(sum(count * scenario.costs.weight_flops.get(key, 0) for key, count in pruned.items()))

    whole = work.masks.each(saved) * work.cohort.examples * work.cohort.epochs
    return work.spent.train_flops - completed_share(whole, work.completed_shares.compute_s)


def account_preparation(totals: Totals, load: CohortLoad, timing: CohortTiming, energy_j: float) -> Totals:
    """Add the costs of preparation; dense clients would not have had them."""
    return replace(
        totals,
        down_bytes=totals.down_bytes + int(load.down_bytes.sum()),
        up_bytes=totals.up_bytes + int(load.up_bytes.sum()),
        train_flops=totals.train_flops + int(load.train_flops.sum()),
        simulated_s=totals.simulated_s + float(timing.total_s.max()),
        energy_j=totals.energy_j + energy_j,
        preparation_s=totals.preparation_s + float(timing.total_s.max()),
        preparation_bytes=totals.preparation_bytes + int(load.down_bytes.sum() + load.up_bytes.sum()),
        preparation_flops=totals.preparation_flops + int(load.train_flops.sum()),
        preparation_j=totals.preparation_j + energy_j,
    )
