"""Budget rules: how much of the model each client can afford, and how much of that its method trains."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.population.profiles import Devices

HALVING_LEVELS = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Widths of HeteroFL's submodels (Diao et al., arXiv 2010.01264)."""

BudgetRule = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From the share of channels each client can afford to the share it trains, `(clients,)`."""


@dataclass(frozen=True, slots=True, eq=False)
class Budgets:
    """The budgets of some clients, arrays `(clients,)`.

    Attributes:
        keep_ratios: Shares of channels; 0 where no submodel fits.
        limited_by: The limit of each budget: `nothing`, `tier`, `deadline`, `memory` or `data cap`.
    """

    keep_ratios: NDArray[np.float64]
    limited_by: NDArray[np.str_]


def budgets_of_tiers(devices: Devices) -> Budgets:
    """Give each client the share of channels in its device's profile."""
    return Budgets(devices.keep_ratio, np.where(devices.keep_ratio < 1, "tier", "nothing"))


def whole_model(affordable: NDArray[np.float64]) -> NDArray[np.float64]:
    """Train the full model on every client, whatever its device."""
    return np.ones_like(affordable)


def all_affordable(affordable: NDArray[np.float64]) -> NDArray[np.float64]:
    """Train as many channels as a client can afford."""
    return affordable


def halving_level(affordable: NDArray[np.float64]) -> NDArray[np.float64]:
    """Train the widest of HeteroFL's levels that a client can afford, the narrowest if none fits."""
    return widest_of(HALVING_LEVELS, affordable)


def widest_of(widths: tuple[float, ...], affordable: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the widest of some widths that each client can afford, the narrowest if none fits.

    >>> widest_of((0.25, 0.5, 1.0), np.array([0.1, 0.5, 0.99, 1.0])).tolist()
    [0.25, 0.5, 0.5, 1.0]
    """
    ascending = np.sort(np.array(widths))
    return np.asarray(ascending[np.maximum(np.searchsorted(ascending, affordable, side="right") - 1, 0)])
