"""Clients that stop in the middle of their work: they drop out, go offline, or run out of battery."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raysim import availability, energy, seeding
from raysim.fates import BATTERY, DROPPED, OFFLINE
from raysim.types import Devices
from raysim.work import Work, stopped


def interrupted(work: Work, devices: Devices, history: Mapping[str, NDArray[np.float64]], seed: int) -> Work:
    """Return the work with what stops each client of itself, whichever comes first.

    A client drops out with its profile's `failure_rate`, at a point of its work drawn uniformly.

    Args:
        work: What the clients would do.
        devices: Devices of all clients.
        history: What is remembered of every client.
        seed: Seed of the experiment.
    """
    clients = work.cohort.clients
    own = devices.of(clients)
    work = stopped(work, drops_out_s(own, clients, work, seed), DROPPED)
    work = stopped(work, availability.online_for_s(own, clients, work.start_s, seed), OFFLINE)
    if not energy.have_batteries(devices):
        return work
    level = energy.levels_j(own, history, clients, work.start_s)
    radio_bytes = (work.load.down_bytes, work.load.up_bytes)
    return stopped(work, energy.seconds_until_empty(own, work.timing, radio_bytes, level), BATTERY)


def drops_out_s(devices: Devices, clients: NDArray[np.int64], work: Work, seed: int) -> NDArray[np.float64]:
    """Return the seconds after which each client drops out, infinite where it does not, `(clients,)`."""
    chance, point = seeding.uniform(seed, "dropout", work.cohort.round, clients, 2)
    return np.where(chance < devices.column("failure_rate"), point * work.timing.total_s, np.inf)
