"""Everything but training: who is there, what each tier can afford, predicted seconds and bytes."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.accounting import client_columns, spend
from raysim.cohort import Cohort, cohort_of, transfer_bytes
from raysim.methods.method import RoundView
from raysim.pruning import masks
from raysim.pruning.significance import first_channels
from raysim.rounds import close, initial_state, moved_on, plan_round
from raysim.scenario import Scenario
from raysim.types import Columns, Mask, Params, ServerState, Totals


def forecast(scenario: Scenario) -> dict[str, Any]:
    """Predict a run; exact where widths do not depend on what is learned, as `exact` says.

    Otherwise every round is predicted as if nothing had been learned, without what is done before round 1.
    """
    workload, history = scenario.workload, []
    state = initial_state(scenario)
    while not scenario.is_over(state):
        state, columns = _predicted(scenario, state)
        history.append(columns)
    totals = state.totals
    examples = workload.population.train.counts
    return {
        "method": scenario.method.name,
        "data": workload.data.name,
        "rounds": state.round,
        "clients": len(workload.population),
        "cohort_size": scenario.cohort_size,
        "examples_per_client": {
            "min": int(examples.min()), "median": float(np.median(examples)), "max": int(examples.max()),
        },
        "channel_groups": len(workload.plan.groups),
        "channels": workload.plan.num_units,
        "unprunable": dict(workload.plan.unprunable),
        "exact": scenario.method.has_known_costs,
        "tiers": tier_rows(scenario, history),
        **summary_of(totals),
    }  # fmt: skip


def summary_of(totals: Totals) -> dict[str, Any]:
    """Return what a run has spent, with its shares of FedAvg's bytes and FLOPs in percent."""
    spent = {
        name: getattr(totals, name)
        for name in ("down_bytes", "up_bytes", "train_flops", "simulated_s", "energy_j", "empty_rounds")
    }
    prepared = {
        name: getattr(totals, name)
        for name in ("preparation_s", "preparation_bytes", "preparation_flops", "preparation_j")
    }
    return {
        "pruning_ratio_mean": totals.pruning_ratio_sum / max(1, totals.client_rounds),
        **spent,
        **prepared,
        "bytes_percent_of_fedavg": totals.bytes_percent_of_fedavg,
        "flops_percent_of_fedavg": totals.flops_percent_of_fedavg,
        "fates": dict(totals.fates),
    }


def targets_of(totals: Totals, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Return for each target accuracy when it was first reached and what had been spent by then; null if never."""
    found = {reached.accuracy: asdict(reached) for reached in totals.reached}
    never = dict.fromkeys(("round", "simulated_s", "bytes", "train_flops", "energy_j"))
    return [found.get(target, {"accuracy": target, **never}) for target in targets]


def _predicted(scenario: Scenario, state: ServerState) -> tuple[ServerState, Columns]:
    """Return state and table after a round in which nothing is learned."""
    plan = plan_round(scenario, state, _first_channels_kept)
    columns = client_columns(scenario, state, plan)
    totals = spend(scenario, state.totals, plan, columns)
    after = moved_on(scenario, state, plan, state.params, plan.memory, totals, columns, None)
    return close(scenario, after, plan, columns)


def _first_channels_kept(scenario: Scenario, view: RoundView) -> tuple[list[Mask], Params]:
    return masks.keep_top_for_cohort(view.plan, first_channels(view.plan), view.keep_ratios), view.memory


def tier_rows(scenario: Scenario, history: list[Columns]) -> list[dict[str, Any]]:
    """Return one row per tier: its median budget, that submodel, and mean seconds where it takes part."""
    workload, costs = scenario.workload, scenario.costs
    seen = {name: np.concatenate([columns[name] for columns in history]) for name in history[0]}
    rows = []
    tier_of = workload.population.devices.tier_of
    everybody = cohort_of(scenario, np.arange(len(workload.population)), round=1)
    for index, name in enumerate(workload.population.devices.tiers):
        median = _median_member(everybody, tier_of == index)
        if median is None:
            continue
        keep_ratio = float(everybody.keep_ratios[median])
        mask = masks.keep_top(workload.plan, first_channels(workload.plan), keep_ratio)
        members = seen["tier"] == name
        means = {
            column: float(seen[column][members].astype(np.float64).mean()) if members.any() else None
            for column in ("download_s", "compute_s", "upload_s", "total_s")
        }
        sizes = transfer_bytes(scenario, mask)
        rows.append({
            "tier": name,
            "clients": int((tier_of == index).sum()),
            "keep_ratio": keep_ratio,
            "limited_by": str(everybody.limited_by[median]),
            "pruning_ratio": costs.pruning_ratio(mask),
            "parameters": costs.of(mask).parameters,
            "train_flops_per_example": costs.of(mask).train_flops,
            "down_bytes": sizes[0],
            "up_bytes": sizes[1],
            **means,
        })  # fmt: skip
    return rows


def _median_member(everybody: Cohort, members: NDArray[np.bool_]) -> int | None:
    """Return a client whose budget is the median of some clients' (the lower one of two)."""
    ids = np.flatnonzero(members)
    if not len(ids):
        return None
    return int(ids[np.argsort(everybody.keep_ratios[ids], kind="stable")[(len(ids) - 1) // 2]])
