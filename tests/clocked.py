"""Work written by hand, and tiny scenarios in every clock mode."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raysim.clock import outcomes
from raysim.clock.timing import CohortLoad, CohortTiming
from raysim.clock.work import Cohort, Work
from raysim.executors.in_process import InProcessExecutor
from raysim.population.profiles import DeviceProfile, Devices
from raysim.population.sampling import listed
from raysim.pruning.masks import CohortMasks, Mask
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, ServerState
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of

QUICK = (
    "data.max_train_examples=150",
    "evaluation.max_examples=50",
    "evaluation.client_share=0.5",
    "training.epochs=2",
    "rounds=4",
    *(f"population.tiers.{tier}.flops_per_s={speed}" for tier, speed in enumerate(("1e6", "2e6", "5e6", "2e7"))),
)
"""Clients that need about half a second to a second of training each."""

FRAIL = tuple(
    f"population.tiers.{tier}.{setting}"
    for tier in range(4)
    for setting in ("failure_rate=0.25", "battery_j=3.0", "train_watts=2.0", "charge_watts=0.2", "idle_watts=0.1",
                    "radio_j_per_byte=1e-5")
)  # fmt: skip
"""Devices that drop out, run empty, and charge."""

MODES = {
    "sync": (),
    "deadline": ("clock.mode=deadline", "clock.deadline_s=0.8"),
    "partial": ("clock.mode=deadline", "clock.deadline_s=0.8", "clock.accept_partial=true"),
    "over-selection": ("clock.mode=over-selection", "clock.over_selection=1.6", "clock.server_s=0.25"),
    "async": ("clock.mode=async", "clock.buffer_size=2", "clock.concurrency=3", "clock.server_s=0.25"),
}
ONE_VERSION = ("scaffold", "prunefl", "feddst", "fedtiny", "fedmef", "fedrts", "nefl")
"""Methods that need one version of the model."""


@functools.cache
def clocked(method: str, mode: str, *overrides: str) -> Scenario:
    return build_scenario(settings_of(method, *QUICK, *MODES[mode], *overrides))


def with_figures(scenario: Scenario, **figures: float) -> Scenario:
    """The scenario with figures that are equal for all devices."""
    devices = scenario.workload.population.devices
    changed = {name: np.full(len(devices.figures[name]), float(value)) for name, value in figures.items()}
    return with_devices(scenario, replace(devices, figures={**devices.figures, **changed}))


def with_devices(scenario: Scenario, devices: Devices) -> Scenario:
    workload = scenario.workload
    population = replace(workload.population, devices=devices)
    return replace(scenario, workload=replace(workload, population=population))


def played(scenario: Scenario, rounds: int | None = None) -> tuple[ServerState, list[RoundReport]]:
    """State and reports after some rounds; none = until the run is over."""
    state, executor, reports = initial_state(scenario), InProcessExecutor(scenario.workload), []
    while len(reports) < rounds if rounds else not scenario.is_over(state):
        state, report = run_round(scenario, state, executor)
        reports.append(report)
    return state, reports


def work_of(
    phases: list[tuple[float, float, float]],
    clients: list[int] | None = None,
    start_s: float = 0.0,
    round: int = 1,
    fates: Sequence[str] = (),
) -> Work:
    """Clients with seconds of download, training and upload; 1,000 bytes down, 500 up, 10,000 FLOPs, 10 steps."""
    size = len(phases)
    timing = CohortTiming(*np.array(phases, np.float64).T)
    ids = np.arange(size) if clients is None else np.array(clients)
    ones, whole = np.ones(size), np.full(size, 1, np.int64)
    cohort = Cohort(round, ids, ones, ones, np.full(size, "nothing"), 7 * whole, 2 * whole)
    load = CohortLoad(1000 * whole, 500 * whole, 10_000 * whole, 100 * whole, 10 * whole)
    outcome_of = np.array(fates or [outcomes.COUNTED] * size, dtype=outcomes.DTYPE)
    masks = CohortMasks.of([Mask(np.ones(4, dtype=np.bool_))] * size)
    return Work(cohort, masks, load, timing, np.full(size, start_s), timing.total_s, outcome_of)


def devices_of(count: int, **figures: float) -> Devices:
    profile = DeviceProfile("any", flops_per_s=1e9, down_bytes_per_s=1e6, up_bytes_per_s=1e6)
    return listed([replace(profile, **figures)] * count)
