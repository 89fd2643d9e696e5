"""Interruptions: clients that drop out, go offline or run out of battery before their work is done."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raysim.clock import energy, outcomes
from raysim.clock.work import Work, stopped
from raysim.core import seeding
from raysim.population import availability
from raysim.population.profiles import Devices


def are_reachable(
    devices: Devices, history: Mapping[str, NDArray[np.float64]], clients: NDArray[np.int64], now_s: float, seed: int
) -> NDArray[np.bool_]:
    """Return which clients are online and have some battery left, `(clients,)`.

    Args:
        devices: Devices of these clients.
        history: Columns kept of every client.
        clients: Their ids.
        now_s: Simulated time.
        seed: Seed of the experiment.
    """
    online = availability.is_online(devices, clients, now_s, seed)
    return online & (energy.levels_j(devices, history, clients, now_s) > 0)


def availability_varies(devices: Devices) -> bool:
    """Whether some client can be reached, or keeps working, at some times and not at others."""
    sometimes = (devices.figures["availability"] < 1) | (devices.figures["availability_swing"] > 0)
    return devices.online is not None or bool(sometimes.any()) or energy.have_batteries(devices)


def interrupted(work: Work, devices: Devices, history: Mapping[str, NDArray[np.float64]], seed: int) -> Work:
    """Return the work with each client's first interruption, if it has one.

    A client drops out with its profile's `failure_rate`, at a point of its work drawn uniformly.

    Args:
        work: The clients' work without interruptions.
        devices: Devices of all clients.
        history: Columns kept of every client.
        seed: Seed of the experiment.
    """
    clients = work.cohort.clients
    own = devices.of(clients)
    work = stopped(work, drops_out_s(own, clients, work, seed), outcomes.DROPPED)
    work = stopped(work, availability.online_for_s(own, clients, work.start_s, seed), outcomes.OFFLINE)
    if not energy.have_batteries(devices):
        return work
    level = energy.levels_j(own, history, clients, work.start_s)
    radio_bytes = (work.load.down_bytes, work.load.up_bytes)
    return stopped(work, energy.seconds_until_empty(own, work.timing, radio_bytes, level), outcomes.BATTERY)


def drops_out_s(devices: Devices, clients: NDArray[np.int64], work: Work, seed: int) -> NDArray[np.float64]:
    """Return the seconds after which each client drops out, infinite where it does not, `(clients,)`."""
    chance, point = seeding.uniform(seed, "dropout", work.cohort.round, clients, 2)
    return np.where(chance < devices.column("failure_rate"), point * work.timing.total_s, np.inf)
