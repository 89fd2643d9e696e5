"""Device tiers of a population: who gets which device, and how speeds vary over time."""

import numpy as np
from numpy.typing import NDArray

from raysim import seeding
from raysim.types import Tier


def assign_tiers(tiers: tuple[Tier, ...], num_clients: int, seed: int) -> NDArray[np.int64]:
    """Deal the clients to the tiers in proportion to their shares, by largest remainder.

    Returns:
        The tier of each client, `(num_clients,)`, in an order drawn from the seed.
    """
    exact = np.array([tier.share for tier in tiers]) * num_clients
    counts = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(counts - exact, kind="stable")[: num_clients - counts.sum()]
    counts[largest_remainders] += 1
    tier_of = np.repeat(np.arange(len(tiers)), counts)
    return seeding.generator(seed, "tiers").permutation(tier_of)


def lognormal_factors(mean_one_std: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn standard normal draws into lognormal factors with mean 1 and the given standard deviation.

    >>> float(lognormal_factors(np.array([0.0]), np.array([1.7]))[0])
    1.0
    """
    variance = np.log1p(mean_one_std**2)
    return np.exp(np.sqrt(variance) * normal - variance / 2)
