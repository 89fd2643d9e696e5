"""The simulated clock: the seconds that each client takes, computed before anybody trains."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.population.profiles import Devices
from raysim.population.sampling import link_drift, speed_factors


@dataclass(frozen=True, slots=True, eq=False)
class CohortTiming:
    """Simulated seconds of each client of a cohort, arrays `(cohort,)`."""

    download_s: NDArray[np.float64]
    compute_s: NDArray[np.float64]
    upload_s: NDArray[np.float64]

    @property
    def total_s(self) -> NDArray[np.float64]:
        """Seconds from the start of the round to the arrival of the update."""
        return self.download_s + self.compute_s + self.upload_s


@dataclass(frozen=True, slots=True, eq=False)
class CohortLoad:
    """Bytes and FLOPs of each client of a cohort in a round, arrays `(cohort,)`."""

    down_bytes: NDArray[np.int64]
    up_bytes: NDArray[np.int64]
    train_flops: NDArray[np.int64]
    activation_bytes: NDArray[np.int64]
    steps: NDArray[np.int64]

    def take(self, indices: NDArray[np.int64]) -> "CohortLoad":
        """Return the load of some clients of the cohort."""
        return CohortLoad(*(getattr(self, name)[indices] for name in CohortLoad.__slots__))


def schedule(load: CohortLoad, devices: Devices, clients: NDArray[np.int64], round: int, seed: int) -> CohortTiming:
    """Compute the seconds that each client takes for its own submodel.

    Seconds of a transfer are latency + bytes / bandwidth; seconds of training are steps x overhead +
    FLOPs / speed + activation bytes / memory bandwidth, divided by a lognormal factor drawn for
    (seed, client, round). Each bandwidth of the link has such a factor as well, and drifts slowly. The mean over
    rounds of each part is what it takes without variation.
    """
    return seconds(load, devices, _speed_factors(devices, clients, round, seed))


def seconds(load: CohortLoad, devices: Devices, factors: NDArray[np.float64]) -> CohortTiming:
    """Compute the seconds of some loads.

    Args:
        load: Arrays `(clients,)`, or `(loads, clients)` for several loads of each client.
        devices: Devices of the clients.
        factors: On speed, download and upload bandwidth, `(3, clients)`.
    """
    compute, down, up = factors
    latency = devices.column("latency_s")
    return CohortTiming(
        download_s=latency + load.down_bytes / (devices.column("down_bytes_per_s") * down),
        compute_s=(
            load.steps * devices.column("step_overhead_s")
            + load.train_flops / devices.column("flops_per_s")
            + load.activation_bytes / devices.column("memory_bytes_per_s")
        )
        / compute,
        upload_s=latency + load.up_bytes / (devices.column("up_bytes_per_s") * up),
    )


def _speed_factors(devices: Devices, clients: NDArray[np.int64], round: int, seed: int) -> NDArray[np.float64]:
    normal = seeding.normal(seed, "speed", round, clients, 3)
    links = devices.column("link_variation")
    factors = speed_factors(np.stack([devices.column("compute_variation"), links, links]), normal)
    factors[1:] *= link_drift(devices, clients, round, seed)
    return factors
