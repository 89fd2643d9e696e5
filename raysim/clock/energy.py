"""Energy: joules that devices spend, and the charge that is left in their batteries."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.clock.timing import CohortTiming
from raysim.clock.work import Work
from raysim.core.tensors import Columns
from raysim.population.profiles import Devices

LEVEL, SINCE = "battery_j", "battery_at_s"
"""Columns of the history: each client's battery charge, and the simulated time of that reading."""


def spent_j(
    devices: Devices, work: Work, waits_s: NDArray[np.float64], level_j: float | NDArray[np.float64] = np.inf
) -> NDArray[np.float64]:
    """Return the joules of each client, `(clients,)`: training, radio and waiting for the round to end.

    A client spends at most the charge of its battery; one whose battery runs empty has spent all of it.

    Args:
        devices: Devices of the clients.
        work: Their work.
        waits_s: Seconds each waited afterwards.
        level_j: Charge of the batteries when they started.
    """
    compute_s = work.completed_shares.compute_s * work.timing.compute_s
    spent = work.spent
    radio_bytes = spent.down_bytes + spent.up_bytes
    drawn_j = (
        devices.column("train_watts") * compute_s
        + devices.column("radio_j_per_byte") * radio_bytes
        + devices.column("idle_watts") * waits_s
    )
    return np.where(work.outcomes == outcomes.BATTERY, level_j, np.minimum(drawn_j, level_j))


def have_batteries(devices: Devices) -> bool:
    """Whether any device runs on a battery."""
    return bool(np.isfinite(devices.figures["battery_j"]).any())


def levels_j(
    devices: Devices,
    history: Mapping[str, NDArray[np.float64]],
    clients: NDArray[np.int64],
    now_s: float | NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the charge of each client's battery, `(clients,)`: infinite on mains, full before its first work."""
    capacity = devices.column("battery_j")
    if LEVEL not in history:
        return capacity
    rested_s = np.maximum(now_s - history[SINCE][clients], 0)
    return np.minimum(capacity, history[LEVEL][clients] + devices.column("charge_watts") * rested_s)


def drained(
    devices: Devices,
    history: Mapping[str, NDArray[np.float64]],
    clients: NDArray[np.int64],
    left_j: NDArray[np.float64],
    at_s: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return the history with new battery levels of some clients.

    Args:
        devices: Devices of all clients.
        history: Columns kept of every client.
        clients: Ids of the clients that worked.
        left_j: Charge of their batteries.
        at_s: Simulated time of that reading.
    """
    if not have_batteries(devices):
        return dict(history)
    levels = history.get(LEVEL, devices.column("battery_j")).copy()
    since = history.get(SINCE, np.zeros(len(devices))).copy()
    levels[clients], since[clients] = np.maximum(left_j, 0), at_s
    return {**history, LEVEL: levels, SINCE: since}


def remembered(
    devices: Devices, history: Mapping[str, NDArray[np.float64]], rows: Columns, ends_s: float | None
) -> dict[str, NDArray[np.float64]]:
    """Return the history after a round, with the battery levels of the clients that worked.

    Args:
        devices: Devices of all clients.
        history: Columns kept of every client.
        rows: The round's table of clients.
        ends_s: Simulated time until which clients that were done waited. None: each left when it was done.
    """
    worked = {name: column[np.isin(rows["fate"], outcomes.ABSENT, invert=True)] for name, column in rows.items()}
    ids, start_s = worked["client"], worked["start_s"]
    left_j = levels_j(devices.of(ids), history, ids, start_s) - worked["energy_j"]
    waited = (worked["fate"] == outcomes.COUNTED) & (ends_s is not None)
    at_s = np.where(waited, ends_s or 0.0, start_s + worked["lasts_s"])
    return drained(devices, history, ids, left_j, at_s)


def seconds_until_empty(
    devices: Devices,
    phases: CohortTiming,
    radio_bytes: tuple[NDArray[np.int64], NDArray[np.int64]],
    level_j: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the seconds of work after which each battery is empty, infinite where it lasts, `(clients,)`.

    A phase draws its energy evenly.

    Args:
        devices: Devices of the clients.
        phases: Seconds of download, training and upload.
        radio_bytes: Bytes down and up.
        level_j: Charge of the batteries.
    """
    per_byte = devices.column("radio_j_per_byte")
    training_j = devices.column("train_watts") * phases.compute_s
    needs = (per_byte * radio_bytes[0], training_j, per_byte * radio_bytes[1])
    elapsed, left = np.zeros(len(devices)), level_j.astype(np.float64)
    empty_s = np.full(len(devices), np.inf)
    for need, phase_s in zip(needs, (phases.download_s, phases.compute_s, phases.upload_s), strict=True):
        here = np.isinf(empty_s) & (need > left)
        empty_s = np.where(here, elapsed + phase_s * left / np.where(need > 0, need, 1.0), empty_s)
        elapsed, left = elapsed + phase_s, left - need
    return empty_s
