"""Find what other devices would have changed beyond the clock: submodels, and the clients that are selected."""

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay.finished_run import FinishedRun
from raysim.budgets.solver import TOLERANCE, BudgetSolver
from raysim.clock import outcomes
from raysim.clock.interruptions import availability_varies
from raysim.core.tensors import Columns
from raysim.methods.method import Method
from raysim.population.profiles import FIGURES, Devices, OnlineIntervals
from raysim.selection.table import looks_at

SOLVED_FROM = (
    "flops_per_s", "down_bytes_per_s", "up_bytes_per_s", "latency_s", "step_overhead_s", "memory_bytes_per_s",
    "link_drift", "memory_bytes", "data_cap_bytes",
)  # fmt: skip
"""Figures of a device that its solved budget depends on."""


def devices_differ(owned: Devices, others: Devices, names: tuple[str, ...] = FIGURES) -> NDArray[np.bool_]:
    """Return which clients have another device, by some of its figures and its keep ratio, `(clients,)`."""
    differs = owned.keep_ratio != others.keep_ratio
    for name in names:
        differs = differs | (owned.column(name) != others.column(name))
    return np.asarray(differs)


def are_same(owned: Devices, others: Devices) -> bool:
    """Whether clients have equal devices, under any name, and are online at the same times."""
    return not devices_differ(owned, others).any() and _same_traces(owned, others)


def _same_traces(owned: Devices, others: Devices) -> bool:
    if owned.online is None or others.online is None:
        return owned.online is others.online
    pairs = [(getattr(owned.online, part), getattr(others.online, part)) for part in OnlineIntervals.__slots__]
    pairs.append((_trace_of(owned), _trace_of(others)))
    return all(np.array_equal(one, other) for one, other in pairs)


def _trace_of(devices: Devices) -> NDArray[np.int64]:
    return devices.device_of if devices.trace_of is None else devices.trace_of


def keep_ratios_under(recorded: FinishedRun, method: Method, others: Devices) -> NDArray[np.float64]:
    """Return what share of the channels each client would have trained on another device, `(rows,)`.

    NaN where it is not known: a method with its own widths would have chosen from another budget.

    Args:
        recorded: The run.
        method: Its method.
        others: The other devices of its clients.
    """
    rows, solver, owned = recorded.clients, recorded.solver, recorded.devices
    clients, trained = rows["client"], rows["keep_ratio"]
    if solver is not None and method.widths is None:
        under = solved_again(solver, method, rows, others, recorded.settings.seed)
    elif solver is not None:
        under = np.where(devices_differ(owned, others, SOLVED_FROM)[clients], np.nan, trained)
    elif method.widths is not None:
        same = (method.budget(owned.keep_ratio) == method.budget(others.keep_ratio))[clients]
        under = np.where(same, trained, np.nan)
    else:
        under = method.budget(others.keep_ratio)[clients]
    return np.where(rows["fate"] == outcomes.UNREACHABLE, trained, under)


def solved_again(
    solver: BudgetSolver, method: Method, rows: Columns, devices: Devices, seed: int
) -> NDArray[np.float64]:
    """Return the share of channels each client can afford on its device in the round it started in, `(rows,)`."""
    under = np.empty(len(rows["client"]))
    for round in np.unique(rows["started_round"]):
        here = np.flatnonzero(rows["started_round"] == round)
        clients = rows["client"][here]
        found = solver.solve(devices.of(clients), clients, rows["examples"][here], int(round), seed).keep_ratios
        trained = method.budget(found)
        under[here] = np.where(trained > found + TOLERANCE, 0.0, trained)
    return under


def selects_by_device(rule: str, owned: Devices, others: Devices) -> bool:
    """Whether a selection rule may select other clients on other devices: all but `uniform` see who is online."""
    return looks_at(rule, "last_s") or (
        rule != "uniform" and (availability_varies(owned) or availability_varies(others))
    )
