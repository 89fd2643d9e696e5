"""Summarise a population's devices in numbers, tier by tier."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.population.profiles import FIGURES, Devices

SPREAD_OUT = (
    "keep_ratio", "flops_per_s", "down_bytes_per_s", "up_bytes_per_s", "memory_bytes_per_s", "memory_bytes",
    "data_cap_bytes", "battery_j",
)  # fmt: skip
"""Figures of which a tier has p10, p50 and p90: they spread within a tier, or have no limit for some clients."""
AVERAGED = tuple(name for name in FIGURES if name not in SPREAD_OUT)
"""Figures of which a tier has the mean."""


def of_devices(devices: Devices) -> list[dict[str, Any]]:
    """Return a row per tier that has clients, with their number and figures. None: no limit."""
    columns = {"keep_ratio": devices.keep_ratio, **{name: devices.column(name) for name in FIGURES}}
    described = []
    for tier, name in enumerate(devices.tiers):
        clients = np.flatnonzero(devices.tier_of == tier)
        if not len(clients):
            continue
        row: dict[str, Any] = {"tier": name, "clients": len(clients), "share": len(clients) / len(devices)}
        row |= {figure: _percentiles(columns[figure][clients]) for figure in SPREAD_OUT}
        row |= {figure: _mean(columns[figure][clients]) for figure in AVERAGED}
        described.append(row)
    return described


def _percentiles(values: NDArray[np.float64]) -> list[float | None]:
    return [_finite(value) for value in np.quantile(values, (0.1, 0.5, 0.9), method="inverted_cdf")]


def _finite(value: np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean, which is exact where all values are equal."""
    return float(values[0] if values.min() == values.max() else values.mean())
