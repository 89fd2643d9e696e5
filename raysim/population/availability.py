"""Compute from seed, client and simulated time who is online: always, by a daily sine, or by traces."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.population.profiles import Devices, OnlineIntervals

DAY_S = 86400.0
SLOT_S = 3600.0
"""Seconds for which a client of the daily sine stays online or offline."""
HORIZON_SLOTS = 7 * 24
"""Number of slots that are examined: a client that stays online for a week never leaves."""


def is_online(
    devices: Devices, clients: NDArray[np.int64], now_s: float | NDArray[np.float64], seed: int
) -> NDArray[np.bool_]:
    """Return which clients are online.

    Traces decide where there are any. Otherwise a client with availability 1 and no swing always is; others are drawn
    once an hour, online with probability availability + swing x sin(2 pi (days + phase)), clipped to [0, 1], where
    each client has its own phase.

    Args:
        devices: Devices of the clients.
        clients: Ids of the clients, `(clients,)`.
        now_s: Simulated seconds, one number or `(clients,)`.
        seed: Seed of the experiment.

    Returns:
        `(clients,)`
    """
    now = np.broadcast_to(np.asarray(now_s, np.float64), clients.shape)
    if devices.online is not None:
        return _current_interval(devices.online, _traces(devices), now)[1]
    drawn = _is_drawn(devices)
    online = ~drawn
    online[drawn] = _sine(devices.of(np.flatnonzero(drawn)), clients[drawn], seed)(_slot(now[drawn]), None)
    return online


def online_for_s(
    devices: Devices, clients: NDArray[np.int64], now_s: float | NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Return the seconds for which each client stays online, according to `is_online`.

    Args:
        devices: Devices of the clients.
        clients: Ids of the clients, `(clients,)`.
        now_s: Simulated seconds, one number or `(clients,)`.
        seed: Seed of the experiment.

    Returns:
        `(clients,)`: 0 for an offline client, infinite for one that never leaves.
    """
    now = np.broadcast_to(np.asarray(now_s, np.float64), clients.shape)
    if devices.online is not None:
        return _rest_of_interval(devices.online, _traces(devices), now)
    left = np.full(len(clients), np.inf)
    drawn = np.flatnonzero(_is_drawn(devices))
    left[drawn] = _rest_of_slots(_sine(devices.of(drawn), clients[drawn], seed), now[drawn])
    return left


def _is_drawn(devices: Devices) -> NDArray[np.bool_]:
    return (devices.column("availability") < 1) | (devices.column("availability_swing") > 0)


def _slot(now: NDArray[np.float64]) -> NDArray[np.int64]:
    return (now // SLOT_S).astype(np.int64)


Drawing = Callable[[NDArray[np.int64], NDArray[np.int64] | None], NDArray[np.bool_]]
"""Returns which clients are online, from an hour for each and their indices. None: all clients."""


def _sine(devices: Devices, clients: NDArray[np.int64], seed: int) -> Drawing:
    mean, swing = devices.column("availability"), devices.column("availability_swing")
    phase = seeding.uniform(seed, "online phase", 0, clients)[0]

    def online(slots: NDArray[np.int64], indices: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        chosen = slice(None) if indices is None else indices
        angle = 2 * np.pi * (slots * (SLOT_S / DAY_S) + phase[chosen])
        probability = mean[chosen] + swing[chosen] * np.sin(angle)  # beyond [0, 1] it is never or always
        drawn = np.empty(len(slots))
        for slot in np.unique(slots):
            here = slots == slot
            drawn[here] = seeding.uniform(seed, "online", int(slot), clients[chosen][here])[0]
        return np.asarray(drawn < probability)

    return online


def _rest_of_slots(online: Drawing, now: NDArray[np.float64]) -> NDArray[np.float64]:
    left = np.full(len(now), np.inf)
    slots, staying = _slot(now), np.arange(len(now))
    for ahead in range(HORIZON_SLOTS):
        if not len(staying):
            break
        stays = online(slots[staying] + ahead, staying)
        leaving = staying[~stays]
        left[leaving] = np.maximum((slots[leaving] + ahead) * SLOT_S - now[leaving], 0)
        staying = staying[stays]
    return left


def _traces(devices: Devices) -> NDArray[np.int64]:
    return devices.device_of if devices.trace_of is None else devices.trace_of


def _current_interval(
    online: OnlineIntervals, traces: NDArray[np.int64], now: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return each trace's last interval that has started, whether it still lasts, and the second in the period."""
    second = np.mod(now, online.periods[traces])
    first, beyond = online.offsets[traces], online.offsets[traces + 1]
    low, high = first.copy(), beyond.copy()
    while (low < high).any():  # bisection, all traces at once
        middle = (low + high) // 2
        started = (low < high) & (online.starts[np.minimum(middle, len(online.starts) - 1)] <= second)
        low, high = np.where(started, middle + 1, low), np.where(started | (low == high), high, middle)
    last = low - 1
    return last, (last >= first) & (second < online.ends[last]), second


def _rest_of_interval(
    online: OnlineIntervals, traces: NDArray[np.int64], now: NDArray[np.float64]
) -> NDArray[np.float64]:
    last, lasts, second = _current_interval(online, traces, now)
    first, period, end = online.offsets[traces], online.periods[traces], online.ends[last]
    at_first = np.minimum(first, len(online.starts) - 1)
    wraps = lasts & (end == period) & (online.starts[at_first] == 0)
    left = np.where(lasts, end - second, 0.0) + np.where(wraps, online.ends[at_first], 0.0)
    return np.where(wraps & (last == first), np.inf, left)
