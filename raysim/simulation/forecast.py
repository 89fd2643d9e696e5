"""The forecast of a run without training: population, budgets of tiers, predicted seconds and bytes."""

from math import isinf
from typing import Any

import numpy as np

from raysim.clock import outcomes
from raysim.clock.work import Cohort
from raysim.core.tensors import Columns, Params
from raysim.methods.method import RoundView
from raysim.pruning import masks
from raysim.pruning.masks import CohortMasks
from raysim.pruning.significance import first_channels
from raysim.simulation.accounting import client_columns
from raysim.simulation.cohort import transfer_bytes
from raysim.simulation.participants import cohort_of
from raysim.simulation.planning import plan_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState, summary_of
from raysim.simulation.transition import end_work_in_flight, initial_state, next_state


def forecast(scenario: Scenario) -> dict[str, Any]:
    """Predict a run; `exact` says whether nothing of it depends on what is learned.

    Otherwise every round is predicted as if nothing had been learned, and without preparation.
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
            "min": int(examples.min()),
            "median": float(np.median(examples)),
            "max": int(examples.max()),
        },
        "channel_groups": len(workload.plan.groups),
        "channels": workload.plan.num_units,
        "unprunable": dict(workload.plan.unprunable),
        "exact": is_exact(scenario),
        "tiers": tier_rows(scenario, history),
        **summary_of(totals),
    }


def is_exact(scenario: Scenario) -> bool:
    """Whether submodels, selection and the end of the run are known before anything is learned."""
    depends_on_losses = "last_loss" in scenario.selection.columns
    return scenario.method.has_known_costs and not depends_on_losses and isinf(scenario.stop.accuracy)


def _predicted(scenario: Scenario, state: ServerState) -> tuple[ServerState, Columns]:
    """Return state and table of clients after a round in which nothing is learned."""
    plan = plan_round(scenario, state, _first_channels_kept)
    columns = client_columns(scenario, state, plan)
    after = next_state(scenario, state, plan, state.params, plan.memory, columns, None)
    return end_work_in_flight(scenario, after, columns)


def _first_channels_kept(scenario: Scenario, view: RoundView) -> tuple[CohortMasks, Params]:
    chosen = masks.keep_top_for_cohort(view.plan, first_channels(view.plan), view.keep_ratios)
    return CohortMasks.of(chosen), view.memory


def tier_rows(scenario: Scenario, history: list[Columns]) -> list[dict[str, Any]]:
    """Return one row per tier: its median budget, the submodel of that budget, and mean seconds."""
    devices = scenario.workload.population.devices
    seen = {name: np.concatenate([columns[name] for columns in history]) for name in history[0]}
    everybody, tier_of = cohort_of(scenario, np.arange(len(devices)), round=1), devices.tier_of
    rows = []
    for index, name in enumerate(devices.tiers):
        members = everybody.take(tier_of == index)
        if len(members.clients):
            rows.append(
                {
                    "tier": name,
                    "clients": len(members.clients),
                    **_median_budget(scenario, members),
                    "infeasible": int((members.keep_ratios == 0).sum()),
                    **_mean_seconds(seen, name),
                }
            )
    return rows


def _median_budget(scenario: Scenario, members: Cohort) -> dict[str, Any]:
    """Describe the median budget (the lower of two) of the clients that can afford one, and its submodel."""
    able = np.flatnonzero(members.keep_ratios > 0)
    if not len(able):
        reasons, counts = np.unique(members.limited_by, return_counts=True)
        nothing = dict.fromkeys(("parameters", "train_flops_per_example", "down_bytes", "up_bytes"), 0)
        return {
            "keep_ratio": 0.0,
            "limited_by": str(reasons[counts.argmax()]),
            "pruning_ratio": 1.0,
            **nothing,
        }
    ranked = able[np.argsort(members.keep_ratios[able], kind="stable")]
    median = ranked[(len(ranked) - 1) // 2]
    keep_ratio, plan = float(members.keep_ratios[median]), scenario.workload.plan
    mask = masks.keep_top(plan, first_channels(plan), keep_ratio)
    down_bytes, up_bytes = transfer_bytes(scenario, mask)
    return {
        "keep_ratio": keep_ratio,
        "limited_by": str(members.limited_by[median]),
        "pruning_ratio": scenario.costs.pruning_ratio(mask),
        "parameters": scenario.costs.of(mask).parameters,
        "train_flops_per_example": scenario.costs.of(mask).train_flops,
        "down_bytes": down_bytes,
        "up_bytes": up_bytes,
    }


def _mean_seconds(seen: Columns, tier: str) -> dict[str, float | None]:
    names = ("download_s", "compute_s", "upload_s", "total_s")
    members = (seen["tier"] == tier) & ~np.isin(seen["fate"], outcomes.ABSENT)
    if not members.any():
        return dict.fromkeys(names)
    return {name: float(seen[name][members].astype(np.float64).mean()) for name in names}
