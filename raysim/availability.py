"""placeholder until the devices branch is merged."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.types import Devices


def is_online(devices: Devices, clients: NDArray[np.int64], now_s: float, seed: int) -> NDArray[np.bool_]:
    """Placeholder."""
    return np.ones(len(clients), dtype=bool)


def online_for_s(devices: Devices, clients: NDArray[np.int64], now_s: Any, seed: int) -> NDArray[np.float64]:
    """Placeholder."""
    return np.full(len(clients), np.inf)
