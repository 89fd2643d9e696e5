"""What other devices change beyond the clock, and so what the records of a run cannot tell."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.replay.source import Recorded
from raysim.budgets.solver import TOLERANCE, BudgetSolver
from raysim.clock.interruptions import availability_varies
from raysim.clock.modes import MODES
from raysim.clock.outcomes import UNREACHABLE
from raysim.core.plugins import is_dotted
from raysim.core.tensors import Columns
from raysim.methods.method import Method
from raysim.population.profiles import FIGURES, Devices, OnlineIntervals
from raysim.selection.table import SELECTIONS

SOLVED_FROM = (
    "flops_per_s", "down_bytes_per_s", "up_bytes_per_s", "latency_s", "step_overhead_s", "memory_bytes_per_s",
    "link_drift", "memory_bytes", "data_cap_bytes",
)  # fmt: skip
"""Figures of a device that its solved budget depends on."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something that a replay cannot tell: why, and how many rounds and clients in rounds it is about."""

    reason: str
    rounds: int = 0
    client_rounds: int = 0


def devices_differ(owned: Devices, others: Devices, names: tuple[str, ...] = FIGURES) -> NDArray[np.bool_]:
    """Return which clients have another device, by some of its figures and its keep ratio, `(clients,)`."""
    differs = owned.keep_ratio != others.keep_ratio
    for name in names:
        differs = differs | (owned.column(name) != others.column(name))
    return np.asarray(differs)


def are_same(owned: Devices, others: Devices) -> bool:
    """Whether clients have the same devices, whatever these are called, and can be reached at the same times."""
    return not devices_differ(owned, others).any() and _same_traces(owned, others)


def _same_traces(owned: Devices, others: Devices) -> bool:
    if owned.online is None or others.online is None:
        return owned.online is others.online
    pairs = [(getattr(owned.online, part), getattr(others.online, part)) for part in OnlineIntervals.__slots__]
    pairs.append((_trace_of(owned), _trace_of(others)))
    return all(np.array_equal(one, other) for one, other in pairs)


def _trace_of(devices: Devices) -> NDArray[np.int64]:
    return devices.device_of if devices.trace_of is None else devices.trace_of


def keep_ratios_under(recorded: Recorded, method: Method, others: Devices) -> NDArray[np.float64]:
    """Return what share of the channels each client would have trained on another device, `(rows,)`.

    NaN where the records do not tell: a method that chooses widths of its own would have chosen from another budget.

    Args:
        recorded: The run.
        method: Its method.
        others: Devices the clients would have had.
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
    return np.where(rows["fate"] == UNREACHABLE, trained, under)


def solved_again(
    solver: BudgetSolver, method: Method, rows: Columns, devices: Devices, seed: int
) -> NDArray[np.float64]:  # fmt: skip
    """Return the share of channels each client can afford on its device in the round it started in, `(rows,)`."""
    under = np.empty(len(rows["client"]))
    for round in np.unique(rows["started_round"]):
        here = np.flatnonzero(rows["started_round"] == round)
        clients = rows["client"][here]
        found = solver.solve(devices.of(clients), clients, rows["examples"][here], int(round), seed).keep_ratios
        trained = method.budget(found)
        under[here] = np.where(trained > found + TOLERANCE, 0.0, trained)
    return under


def of_devices(recorded: Recorded, method: Method, others: Devices) -> list[Unknown]:
    """Return what is unknown on other devices from the first round on, whatever the clock says."""
    settings, owned = recorded.settings, recorded.devices
    name, starts_together = settings.method.name, MODES[settings.clock.mode].starts_together
    unknown = []
    if method.prepare is not None:
        unknown.append(Unknown("what was done before round 1 is not timed again: its seconds and joules are kept"))
    if method.learns_widths:
        unknown.append(Unknown(
            f"method.name={name!r} chooses submodels from what it learns, which may depend on devices: "
            "they are as recorded, the accuracy is not known"
        ))  # fmt: skip
    reaching = availability_varies(owned) or availability_varies(others)
    if not starts_together:
        unknown.append(Unknown(
            "clients start in the recorded order, as soon as there is room: which of them would have been asked "
            "depends on who is at work"
        ))  # fmt: skip
    if not starts_together and reaching:
        unknown.append(Unknown("who did not answer is as recorded"))
    return unknown


def asks_by_device(rule: str, owned: Devices, others: Devices) -> bool:
    """Whether a selection rule may ask other clients where devices differ: all but `uniform` see who is online."""
    return looks_at(rule, "last_s") or (
        rule != "uniform" and (availability_varies(owned) or availability_varies(others))
    )


def looks_at(rule: str, column: str) -> bool:
    """Whether a selection rule looks at something that is remembered of clients; a user's own may look at all."""
    return is_dotted(rule) or column in SELECTIONS[rule].columns
