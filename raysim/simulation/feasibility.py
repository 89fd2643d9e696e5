"""Feasibility: solved budgets of a scenario, and whether any client can meet its deadline."""

from dataclasses import replace
from math import ceil, floor, inf, isinf, log10

import numpy as np
from numpy.typing import NDArray

from raysim.budgets.ladder import UNLIMITED_ROWS, Ladder
from raysim.budgets.solver import LIMITS, BudgetSolver
from raysim.clock.timing import seconds
from raysim.clock.work import Cohort
from raysim.core.errors import SettingError
from raysim.data.batches import num_batches
from raysim.methods import resolve as methods
from raysim.methods.method import RoundView
from raysim.models.cost import training_bytes
from raysim.simulation.cohort import load_of, view_of
from raysim.simulation.participants import cohort_of
from raysim.simulation.scenario import Scenario
from raysim.simulation.transition import unscaled_state

STEPS = 32
"""Steps of the ladder where the settings give none."""
MANY_ROWS = 1024
"""Rows of a probe that finds out whether some of a method's costs occur for a limited number of rows only."""


def with_solved_budgets(scenario: Scenario, deadline_s: float | None, steps: int | None) -> Scenario:
    """Return a scenario whose budgets are solved; unchanged where the method trains the full model anyway.

    Args:
        scenario: The run.
        deadline_s: Seconds of a round. None: no limit.
        steps: The ladder has the keep ratios 1/steps to 1, or the method's widths below them.

    Raises:
        SettingError: If nothing limits any client, or no client can afford the lowest rung.
    """
    devices, local = scenario.workload.population.devices, scenario.workload.local
    limited = [np.isfinite(devices.figures[name]).any() for name in ("memory_bytes", "data_cap_bytes")]
    if deadline_s is None and not any(limited):
        raise SettingError(
            "budget.rule='solved' has no effect without budget.deadline_s and without a device that has "
            "memory_bytes or data_cap_bytes; allowed: one of these, or budget.rule='tier'"
        )
    if scenario.method.ignores_budgets:
        return scenario
    rungs = np.arange(1, (steps or STEPS) + 1) / (steps or STEPS)
    ladder = ladder_of_ratios(scenario, np.unique(scenario.method.budget(rungs)))
    solver = BudgetSolver(ladder, inf if deadline_s is None else deadline_s, local.epochs, local.batch_size)
    scenario = replace(scenario, budget=solver)
    check_somebody_can_train(scenario, solver)
    return scenario


def ladder_of_ratios(scenario: Scenario, keep_ratios: NDArray[np.float64]) -> Ladder:
    """Count the costs of the method's submodels at ascending keep ratios: those of the clock, and memory.

    A method's `load` may add FLOPs per example and epoch, and FLOPs per example once a round for up to a number
    of examples.
    """
    workload, method = scenario.workload, scenario.method
    method = replace(method, load=method.most_load or method.load)
    scenario = replace(scenario, method=method)
    probes = [_view_of_rungs(scenario, keep_ratios, *sizes) for sizes in ((1, 1), (1, 2), (MANY_ROWS, 1))]
    chosen = methods.cost_masks(method, probes[0])
    once, twice, many = (load_of(scenario, probe, chosen) for probe in probes)
    flops = twice.train_flops - once.train_flops
    activations = twice.activation_bytes - once.activation_bytes
    extra = once.train_flops - flops
    trains_dense_first = method.rules.choose_locally is not None
    held = [scenario.costs.dense if trains_dense_first else scenario.costs.of(mask) for mask in chosen]
    buffers = workload.local.optimizer_buffers
    state = np.array([training_bytes(cost, buffers, rows=0) for cost in held], dtype=np.int64)
    return Ladder(
        keep_ratios,
        down_bytes=once.down_bytes,
        up_bytes=once.up_bytes,
        train_flops=flops,
        activation_bytes=activations,
        extra_flops=extra,
        extra_activation_bytes=once.activation_bytes - activations,
        state_bytes=state + methods.remembered_bytes(method, scenario.costs),
        row_bytes=once.activation_bytes,
        extra_rows=_extra_rows(many.train_flops - MANY_ROWS * flops, extra),
    )


def _view_of_rungs(scenario: Scenario, keep_ratios: NDArray[np.float64], rows: int, epochs: int) -> RoundView:
    """Return the view of a round of clients with equal rows and epochs, one on each rung."""
    ones = np.ones(len(keep_ratios), dtype=np.int64)
    cohort = Cohort(
        round=1,
        clients=0 * ones,
        budgets=keep_ratios,
        keep_ratios=keep_ratios,
        limited_by=np.full(len(ones), "nothing"),
        examples=rows * ones,
        epochs=epochs * ones,
    )
    return view_of(scenario, unscaled_state(scenario), cohort)


def _extra_rows(of_many: NDArray[np.int64], of_one: NDArray[np.int64]) -> int:
    """Return for how many rows extra FLOPs occur in a round of many rows."""
    rows = int((of_many // np.maximum(of_one, 1)).max())
    return rows if 0 < rows < MANY_ROWS else UNLIMITED_ROWS


def check_somebody_can_train(scenario: Scenario, solver: BudgetSolver) -> None:
    """Raise SettingError, with the least that any client would need, if no client can afford a submodel."""
    population = scenario.workload.population
    everybody = cohort_of(scenario, np.arange(len(population)), round=1)
    if (everybody.keep_ratios > 0).any():
        return
    problems = [
        _problem(scenario, solver, limit, everybody.clients[everybody.limited_by == limit])
        for limit in LIMITS
        if (everybody.limited_by == limit).any()
    ]
    raise SettingError("budget.rule='solved' leaves no client to train: " + "; ".join(problems))


def _problem(scenario: Scenario, solver: BudgetSolver, limit: str, clients: NDArray[np.int64]) -> str:
    population = scenario.workload.population
    seconds, memory, transfer = solver.least(
        population.devices.of(clients), clients, population.train.counts[clients], 1, scenario.workload.seed
    )
    lowest, enough_s = f"keep_ratio={solver.ladder.keep_ratios[0]:g}", f"{_rounded_up(seconds):g}"
    if limit == "deadline":
        met = f"budget.deadline_s={solver.deadline_s:g} is met by none of {len(clients)} clients"
        return f"{met}: the fastest needs {enough_s} s at {lowest}; allowed: {enough_s} or more"
    if limit == "memory":
        return f"memory_bytes is too small on {len(clients)} devices; allowed: {memory} or more, to train at {lowest}"
    if limit == "data cap":
        return f"data_cap_bytes is too small on {len(clients)} devices; allowed: {transfer} or more, as of {lowest}"
    return f"keep_ratio is too small on {len(clients)} devices; allowed: {lowest} or more with this method"


def _rounded_up(value: float) -> float:
    """Round up to four digits, so that the printed number is sufficient.

    >>> _rounded_up(0.12341), _rounded_up(2.0)
    (0.1235, 2.0)
    """
    scale = 10.0 ** (3 - floor(log10(value)))
    return ceil(value * scale) / scale


LONGEST_S = 1e9
"""Longest work of a client in a round, some 30 years: seconds then fit into 64 bits over all rounds."""


def check_clock(scenario: Scenario) -> None:
    """Refuse numbers with which a client's work, of the whole model, does not fit into 64 bits or ends never.

    Raises:
        SettingError: If a client's FLOPs or seconds of a round are too many; the message names the greatest cause.
    """
    local, population, cost = scenario.workload.local, scenario.workload.population, scenario.costs.dense
    rows, devices = population.train.counts, population.devices
    most = int(rows.max()) * local.epochs * max(cost.train_flops, cost.activation_bytes, 1) * scenario.cohort_size
    if most >= 2**63:
        raise SettingError(
            f"training.epochs={local.epochs} makes {float(most):.3g} FLOPs a round, which do not fit into 64 bits; "
            f"allowed: at most {max(1, local.epochs * 2**62 // most)} with these clients and this model"
        )
    flops, activations = float(cost.train_flops * local.epochs), float(cost.activation_bytes * local.epochs)
    steps = local.epochs * num_batches(rows, local.batch_size).astype(np.float64)
    parts = {
        "latency_s": 2 * devices.column("latency_s"),
        "down_bytes_per_s": cost.model_bytes / devices.column("down_bytes_per_s"),
        "up_bytes_per_s": cost.model_bytes / devices.column("up_bytes_per_s"),
        "step_overhead_s": steps * devices.column("step_overhead_s"),
        "flops_per_s": flops * rows / devices.column("flops_per_s"),
        "memory_bytes_per_s": activations * rows / devices.column("memory_bytes_per_s"),
    }
    for name, part_s in parts.items():
        slowest = int(part_s.argmax())
        if part_s[slowest] > LONGEST_S:
            tier = devices.tiers[int(devices.tier_of[slowest])]
            raise SettingError(
                f"{name}={devices.column(name)[slowest]:g} of tier {tier!r}: client {slowest} needs "
                f"{part_s[slowest]:.3g} simulated seconds in a round; allowed: figures with which it needs at most "
                f"{LONGEST_S:g}"
            )


LUCK = 4.0
"""Standard deviations by which speeds may exceed their means in a round."""


def check_deadline(scenario: Scenario) -> None:
    """Raise SettingError if no client could meet the round's deadline, even with speeds far above their means.

    Not checked for methods that choose widths or epochs themselves; their late clients are counted as late.
    """
    method = scenario.method
    chooses = method.widths is not None or method.work is not None or method.prepare is not None
    if isinf(scenario.clock.deadline_s) or chooses:
        return
    population = scenario.workload.population
    everybody = cohort_of(scenario, np.arange(len(population)), round=1)
    able = everybody.take(everybody.keep_ratios > 0)
    least_s = float(least_seconds(scenario, able).min())
    if least_s > scenario.clock.deadline_s:
        raise SettingError(
            f"clock.deadline_s={scenario.clock.deadline_s:g} is met by none of {len(population)} clients: "
            f"the fastest needs {least_s:.4g} s; allowed: more than that, or narrower submodels"
        )


def least_seconds(scenario: Scenario, cohort: Cohort) -> NDArray[np.float64]:
    """Return the least seconds of each client: all bandwidths and speeds far above their means.

    Where partial work is accepted, they are the seconds of the fewest epochs.
    """
    local, population = scenario.workload.local, scenario.workload.population
    epochs = scenario.method.min_epochs if scenario.clock.accept_partial else local.epochs
    ladder = ladder_of_ratios(scenario, np.unique(cohort.keep_ratios))
    later_bytes = np.maximum(ladder.down_bytes - scenario.costs.dense.frozen_bytes, 0)  # frozen ones travel once
    ladder = replace(ladder, down_bytes=later_bytes)
    rungs = np.searchsorted(ladder.keep_ratios, cohort.keep_ratios)
    found = np.empty(len(rungs))
    for rung in range(len(ladder)):
        members = np.flatnonzero(rungs == rung)
        devices = population.devices.of(cohort.clients[members])
        load = ladder.load(cohort.examples[members], epochs, local.batch_size)
        links = devices.column("link_variation") + devices.column("link_drift")
        spread = np.stack([devices.column("compute_variation"), links, links])
        found[members] = seconds(load, devices, np.exp(LUCK * spread)).total_s[rung]
    return found
