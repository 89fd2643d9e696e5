"""What a round has cost: the clients' table and the run's totals."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysim.clock import CohortLoad
from raysim.cohort import Cohort
from raysim.contribution import Contribution
from raysim.scenario import Scenario
from raysim.types import CohortTiming, Columns, Mask, Score, Totals


def client_columns(
    scenario: Scenario, cohort: Cohort, masks: Sequence[Mask], load: CohortLoad, timing: CohortTiming,
    contribution: Contribution,
) -> Columns:  # fmt: skip
    """Return the round's table: one row per client."""
    devices = scenario.workload.population.devices
    reported = {name: column for name, column in contribution.clients.items() if name != "client"}
    return {
        "round": np.full(len(cohort.clients), cohort.round),
        "client": cohort.clients,
        "tier": np.array(devices.tiers)[devices.of(cohort.clients).tier_of],
        "keep_ratio": cohort.keep_ratios,
        "limited_by": cohort.limited_by,
        "examples": cohort.examples,
        "steps": load.steps,
        **reported,
        **cost_columns(scenario, masks, load, timing),
        "theoretical_train_flops": theoretical_flops(scenario, masks, load, cohort),
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


def theoretical_flops(
    scenario: Scenario, masks: Sequence[Mask], load: CohortLoad, cohort: Cohort
) -> NDArray[np.int64]:
    """Return each client's FLOPs if hardware skipped every single pruned weight, `(cohort,)`; none does today."""
    saved = np.zeros(len(masks), dtype=np.int64)
    for place, mask in enumerate(masks):
        if mask.elements:
            pruned, per_weight = scenario.costs.pruned_elements(mask), scenario.costs.weight_flops
            saved[place] = sum(count * per_weight.get(key, 0) for key, count in pruned.items())
    return load.train_flops - saved * cohort.examples * cohort.epochs


def account_preparation(totals: Totals, load: CohortLoad, timing: CohortTiming) -> Totals:
    """Add what was spent before the first round; dense clients would not have spent it."""
    return replace(
        totals,
        down_bytes=totals.down_bytes + int(load.down_bytes.sum()),
        up_bytes=totals.up_bytes + int(load.up_bytes.sum()),
        train_flops=totals.train_flops + int(load.train_flops.sum()),
        simulated_s=totals.simulated_s + float(timing.total_s.max()),
        preparation_s=totals.preparation_s + float(timing.total_s.max()),
        preparation_bytes=totals.preparation_bytes + int(load.down_bytes.sum() + load.up_bytes.sum()),
        preparation_flops=totals.preparation_flops + int(load.train_flops.sum()),
    )
