"""The simulated clock: seconds each client of a cohort takes, known before anybody trains."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim import seeding
from raysim.devices import lognormal_factors
from raysim.types import CohortTiming, DeviceProfile


@dataclass(frozen=True, slots=True, eq=False)
class CohortLoad:
    """What each cohort member transfers and computes in a round, arrays `(cohort,)`."""

    down_bytes: NDArray[np.int64]
    up_bytes: NDArray[np.int64]
    train_flops: NDArray[np.int64]
    activation_bytes: NDArray[np.int64]
    steps: NDArray[np.int64]


def schedule(
    load: CohortLoad, devices: list[DeviceProfile], clients: NDArray[np.int64], round: int, seed: int
) -> CohortTiming:
    """Compute how long each client takes for its own submodel.

    Seconds of a transfer are latency + bytes / bandwidth; seconds of training are steps x overhead +
    FLOPs / speed + activation bytes / memory bandwidth. Speed and each bandwidth vary by a lognormal factor
    drawn for (seed, client, round).
    """
    compute, down, up = _speed_factors(devices, clients, round, seed)
    latency = _column(devices, "latency_s")
    return CohortTiming(
        download_s=latency + load.down_bytes / (_column(devices, "down_bytes_per_s") * down),
        compute_s=load.steps * _column(devices, "step_overhead_s")
        + load.train_flops / (_column(devices, "flops_per_s") * compute)
        + load.activation_bytes / _column(devices, "memory_bytes_per_s"),
        upload_s=latency + load.up_bytes / (_column(devices, "up_bytes_per_s") * up),
    )


def _column(devices: list[DeviceProfile], name: str) -> NDArray[np.float64]:
    return np.array([getattr(device, name) for device in devices], dtype=np.float64)


def _speed_factors(
    devices: list[DeviceProfile], clients: NDArray[np.int64], round: int, seed: int
) -> NDArray[np.float64]:
    normal = np.empty((3, len(clients)))
    for place, client in enumerate(clients):
        normal[:, place] = seeding.generator(seed, "speed", round, int(client)).standard_normal(3)
    links = _column(devices, "link_variation")
    return lognormal_factors(np.stack([_column(devices, "compute_variation"), links, links]), normal)
