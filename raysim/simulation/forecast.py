"""The forecast of a run without training: population, budgets of tiers, predicted seconds and bytes."""

from collections.abc import Mapping
from dataclasses import replace
from math import isinf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.clock.work import Cohort
from raysim.core import plugins
from raysim.core.formatting import AGAINST_FEDAVG
from raysim.core.tensors import Columns, Params
from raysim.methods import resolve as methods
from raysim.methods.method import RoundView
from raysim.pruning.masks import CohortMasks, Mask
from raysim.simulation.accounting import client_columns, with_evaluation
from raysim.simulation.cohort import planned_work, transfer_bytes, view_of
from raysim.simulation.evaluation import Evaluation, statistics_flops
from raysim.simulation.fedavg import why_not_compared, with_fedavg
from raysim.simulation.participants import cohort_of, feasible, with_method
from raysim.simulation.participation import Participation
from raysim.simulation.planning import plan_round
from raysim.simulation.remarks import changed_widths, nothing_cut
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState, summary_of
from raysim.simulation.transition import end_work_in_flight, next_state, unscaled_state


@plugins.users_code()
def forecast(scenario: Scenario) -> dict[str, Any]:
    """Predict a run; `exact` says whether nothing of it depends on what is learned, or is extrapolated.

    Otherwise every round is predicted as if nothing had been learned, and without preparation. Of a long run the
    first `forecast_rounds` are predicted, and the others counted as if they were like them.
    """
    workload, history = scenario.workload, []
    state, most = unscaled_state(scenario), _most_rounds(scenario)
    while not scenario.is_over(state) and state.round < most:
        state, columns = _predicted(scenario, state)
        history.append(columns)
    is_whole = scenario.is_over(state)
    rounds = state.round if is_whole else scenario.rounds
    spent = _extrapolated(summary_of(state.totals), rounds / state.round)
    examples = workload.population.train.counts
    return {
        "method": scenario.method.name,
        "data": workload.data.name,
        "rounds": rounds,
        "forecast_rounds": state.round,
        "clients": len(workload.population),
        "cohort_size": scenario.cohort_size,
        "examples_per_client": {
            "min": int(examples.min()),
            "median": float(np.median(examples)),
            "max": int(examples.max()),
        },
        "channel_groups": len(workload.plan.groups),
        "channels": workload.plan.num_units,
        "batch_size": scenario.workload.local.batch_size,
        "forward_macs_per_batch": _forward_macs(scenario, Mask.whole(workload.plan)),
        "unprunable": dict(workload.plan.unprunable),
        "exact": is_exact(scenario) and is_whole,
        "tiers": tier_rows(scenario, history),
        "never_counted": never_counted(scenario, history),
        "remarks": [line for line in (changed_widths(scenario), nothing_cut(scenario)) if line],
        **spent,
        "why_no_fedavg": why_not_compared(scenario.selection.name, scenario.stop.given),
    }


MAX_ROUNDS, MAX_CLIENT_ROUNDS = 2_000, 1_000_000
"""Largest number of rounds, and of clients over all rounds, that are predicted one by one."""
SHARES = ("pruning_ratio_mean", *(f"{name}_percent_of_fedavg" for name in AGAINST_FEDAVG))
"""Figures of a run that do not grow with its rounds."""


def _most_rounds(scenario: Scenario) -> int:
    return max(100, min(MAX_ROUNDS, MAX_CLIENT_ROUNDS // scenario.cohort_size))


def _extrapolated(spent: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return what some rounds spend times a factor; there is no preparation in a forecast."""
    if factor == 1:
        return dict(spent)
    return {name: value if name in SHARES else _grown(value, factor) for name, value in spent.items()}


def _grown(value: Any, factor: float) -> Any:
    if isinstance(value, Mapping):
        return {name: _grown(part, factor) for name, part in value.items()}
    if value is None:
        return None
    return round(value * factor) if isinstance(value, int) else value * factor


def is_exact(scenario: Scenario) -> bool:
    """Whether submodels, selection and the end of the run are known before anything is learned."""
    depends_on_losses = "last_loss" in scenario.selection.columns
    return scenario.method.has_known_costs and not depends_on_losses and scenario.stop.primary is None


def _predicted(scenario: Scenario, state: ServerState) -> tuple[ServerState, Columns]:
    """Return state and table of clients after a round in which nothing is learned."""
    plan = plan_round(scenario, state, _masks_of_equal_cost)
    columns = client_columns(scenario, state, plan)
    after = next_state(scenario, state, plan, state.params, plan.memory, columns, None)
    unscored = Evaluation(after.params, statistics_flops=statistics_flops(scenario, after))
    after = replace(after, totals=with_evaluation(after.totals, unscored, after.round, scenario.primary))
    after, columns = end_work_in_flight(scenario, after, columns)
    return with_fedavg(scenario, state, after), columns


def _masks_of_equal_cost(scenario: Scenario, view: RoundView) -> tuple[CohortMasks, Params]:
    return methods.cost_masks(scenario.method, view), view.memory


def tier_rows(scenario: Scenario, history: list[Columns]) -> list[dict[str, Any]]:
    """Return one row per tier: its median budget, the submodel of that budget, and mean seconds."""
    devices = scenario.workload.population.devices
    seen = {name: np.concatenate([columns[name] for columns in history]) for name in history[0]}
    everybody, tier_of = cohort_of(scenario, np.arange(len(devices)), round=1), devices.tier_of
    late, rows = late_in_a_round(scenario), []
    for index, name in enumerate(devices.tiers):
        members = everybody.take(tier_of == index)
        if len(members.clients):
            rows.append(
                {
                    "tier": name,
                    "clients": len(members.clients),
                    **_median_budget(scenario, members),
                    "infeasible": int((members.keep_ratios == 0).sum()),
                    "late": int(late[members.clients].sum()),
                    **_mean_seconds(seen, name),
                }
            )
    return rows


def never_counted(scenario: Scenario, history: list[Columns]) -> dict[str, Any]:
    """Return the tiers and clients whose work would never count."""
    found = Participation(scenario.workload.population.devices)
    for columns in history:
        found.add(columns["client"], columns["fate"])
    return found.never_counted()


def late_in_a_round(scenario: Scenario) -> NDArray[np.bool_]:
    """Return which clients would be late if they took part in round 1, `(clients,)`; nobody is without a deadline."""
    everybody = np.arange(len(scenario.workload.population))
    late = np.zeros(len(everybody), dtype=np.bool_)
    if isinf(scenario.clock.deadline_s):
        return late
    state = unscaled_state(scenario)
    able, _ = feasible(cohort_of(scenario, everybody, round=1))
    work, _ = planned_work(scenario, state, with_method(scenario, state, able), _masks_of_equal_cost)
    late[able.clients] = work.timing.total_s > scenario.clock.deadline_s
    return late


def _median_budget(scenario: Scenario, members: Cohort) -> dict[str, Any]:
    """Describe the median budget (the lower of two) of the clients that can afford one, and its submodel."""
    able = np.flatnonzero(members.keep_ratios > 0)
    if not len(able):
        reasons, counts = np.unique(members.limited_by, return_counts=True)
        names = ("parameters", "train_flops_per_example", "forward_macs_per_batch", "down_bytes", "up_bytes")
        nothing = dict.fromkeys(names, 0)
        return {
            "keep_ratio": 0.0,
            "limited_by": str(reasons[counts.argmax()]),
            "pruning_ratio": 1.0,
            **nothing,
        }
    ranked = able[np.argsort(members.keep_ratios[able], kind="stable")]
    median = ranked[(len(ranked) - 1) // 2]
    keep_ratio, one = float(members.keep_ratios[median]), members.take(np.array([median]))
    (mask,) = methods.cost_masks(scenario.method, view_of(scenario, unscaled_state(scenario), one))
    down_bytes, up_bytes = transfer_bytes(scenario, mask)
    return {
        "keep_ratio": keep_ratio,
        "limited_by": str(members.limited_by[median]),
        "pruning_ratio": scenario.costs.pruning_ratio(mask),
        "parameters": scenario.costs.of(mask).parameters - sum(scenario.costs.pruned_elements(mask).values()),
        "train_flops_per_example": scenario.costs.of(mask).train_flops,
        "forward_macs_per_batch": _forward_macs(scenario, mask),
        "down_bytes": down_bytes,
        "up_bytes": up_bytes,
    }


def _forward_macs(scenario: Scenario, mask: Mask) -> int:
    """Return the multiply-accumulates of a submodel's forward pass over one batch."""
    return scenario.costs.forward_flops_of(mask) // 2 * scenario.workload.local.batch_size


def _mean_seconds(seen: Columns, tier: str) -> dict[str, float | None]:
    names = ("download_s", "compute_s", "upload_s", "total_s")
    members = (seen["tier"] == tier) & ~np.isin(seen["fate"], outcomes.ABSENT)
    if not members.any():
        return dict.fromkeys(names)
    return {name: float(seen[name][members].astype(np.float64).mean()) for name in names}
