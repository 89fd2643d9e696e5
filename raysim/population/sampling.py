"""Draw the clients' devices, and how speeds vary between devices and over time."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.population.profiles import FIGURES, DeviceProfile, Devices, Tier

SPREADS = {
    "compute_spread": ("flops_per_s", "memory_bytes_per_s"),
    "link_spread": ("down_bytes_per_s", "up_bytes_per_s"),
    "memory_spread": ("memory_bytes",),
}
"""Figures that a spread varies together between the devices of a tier."""
DRIFT_ROUNDS = 10
"""Rounds for which a slow drift of the bandwidths lasts."""


def of_tiers(tiers: Sequence[Tier], num_clients: int, seed: int) -> Devices:
    """Assign the clients to tiers; if a tier has a spread, every client gets a device of its own.

    The factors of a spread are lognormal with mean 1.
    """
    tier_of = assign_tiers(tiers, num_clients, seed)
    devices = listed([tier.device for tier in tiers], [tier.keep_ratio for tier in tiers], tier_of)
    if not any(getattr(tier, name) for tier in tiers for name in SPREADS):
        return devices
    figures = {name: column[tier_of] for name, column in devices.figures.items()}
    for name, columns in SPREADS.items():
        spread = np.array([getattr(tier, name) for tier in tiers])[tier_of]
        factors = lognormal_factors(spread, seeding.generator(seed, name).standard_normal(num_clients))
        figures |= {column: figures[column] * factors for column in columns}
    return Devices(figures, devices.keep_ratio, devices.tiers, tier_of, np.arange(num_clients))


def listed(
    profiles: Sequence[DeviceProfile],
    keep_ratios: Sequence[float] | None = None,
    device_of: NDArray[np.int64] | None = None,
) -> Devices:
    """Return devices as columns.

    Args:
        profiles: The devices; profiles with equal names form one tier.
        keep_ratios: Largest share of channels that each trains. None: all channels.
        device_of: The device of each client, `(clients,)`. None: one client for each device, in order.
    """
    tiers = tuple(dict.fromkeys(profile.name for profile in profiles))
    return Devices(
        figures={name: np.array([getattr(profile, name) for profile in profiles], np.float64) for name in FIGURES},
        keep_ratios=np.ones(len(profiles)) if keep_ratios is None else np.array(keep_ratios, np.float64),
        tiers=tiers,
        tier_of_device=np.array([tiers.index(profile.name) for profile in profiles], np.int64),
        device_of=np.arange(len(profiles)) if device_of is None else device_of,
    )


def assign_tiers(tiers: Sequence[Tier], num_clients: int, seed: int) -> NDArray[np.int64]:
    """Assign the clients to the tiers in proportion to their shares, by largest remainder.

    Returns:
        The tier of each client, `(num_clients,)`, in an order drawn from the seed.
    """
    exact = np.array([tier.share for tier in tiers]) * num_clients
    counts = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(counts - exact, kind="stable")[: num_clients - counts.sum()]
    counts[largest_remainders] += 1
    tier_of = np.repeat(np.arange(len(tiers)), counts)
    return seeding.generator(seed, "tiers").permutation(tier_of)


def link_drift(devices: Devices, clients: NDArray[np.int64], round: int, seed: int) -> NDArray[np.float64]:
    """Return the factors of each client's download and upload bandwidth, which the server measures.

    They are lognormal, and drawn from (seed, client) every `DRIFT_ROUNDS` rounds; the mean of a transfer's seconds is
    the nominal one.

    Args:
        devices: Devices of the clients.
        clients: Ids of the clients, `(clients,)`.
        round: Counted from 1.
        seed: Seed of the experiment.

    Returns:
        `(2, clients)`: download, upload.
    """
    normal = seeding.normal(seed, "link drift", max(round - 1, 0) // DRIFT_ROUNDS, clients, 2)
    return speed_factors(devices.column("link_drift"), normal)


def speed_factors(std: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn standard normal draws into lognormal factors on speeds, under which seconds keep their mean.

    Seconds are divided by a factor; 1 / factor has mean 1 and the given standard deviation.
    """
    return 1 / lognormal_factors(std, -normal)


def lognormal_factors(mean_one_std: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn standard normal draws into lognormal factors with mean 1 and the given standard deviation.

    >>> float(lognormal_factors(np.array([0.0]), np.array([1.7]))[0])
    1.0
    """
    variance = np.log1p(mean_one_std**2)
    return np.exp(np.sqrt(variance) * normal - variance / 2)


SPEED_TIERS = ("slow", "medium", "fast")
"""Tiers of devices without names: thirds by training speed."""


def of_columns(
    figures: Mapping[str, NDArray[np.float64]],
    keep_ratios: NDArray[np.float64] | None = None,
    tiers: tuple[tuple[str, ...], NDArray[np.int64]] | None = None,
) -> Devices:
    """Return columns as devices, one client for each.

    Args:
        figures: Some figures of the profiles, `(devices,)` each, with the three speeds; the others have the defaults
            of `DeviceProfile`.
        keep_ratios: Largest share of channels that each trains, `(devices,)`. None: all channels.
        tiers: Names of the tiers and the tier of each device, `(devices,)`. None: thirds by speed.
    """
    num_devices = len(figures["flops_per_s"])
    defaults = {field.name: field.default for field in fields(DeviceProfile)}
    names, tier_of_device = tiers or thirds_by_speed(figures["flops_per_s"])
    return Devices(
        figures={
            name: figures[name] if name in figures else np.full(num_devices, defaults[name]) for name in FIGURES
        },
        keep_ratios=np.ones(num_devices) if keep_ratios is None else keep_ratios,
        tiers=names,
        tier_of_device=tier_of_device,
        device_of=np.arange(num_devices),
    )


def thirds_by_speed(speeds: NDArray[np.float64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Group devices by speed into up to three tiers of about equal size; equal speeds share a tier.

    >>> thirds_by_speed(np.array([9.0, 1.0, 4.0, 4.0]))
    (('slow', 'medium', 'fast'), array([2, 0, 1, 1]))
    """
    _, value_of, times = np.unique(speeds, return_inverse=True, return_counts=True)
    middle_ranks = (np.cumsum(times) - times / 2) / len(speeds)
    thirds = np.minimum((3 * middle_ranks).astype(np.int64), 2)
    used, tier_of_value = np.unique(thirds, return_inverse=True)
    return tuple(SPEED_TIERS[third] for third in used), tier_of_value[value_of]


def for_clients(devices: Devices, num_clients: int, seed: int) -> Devices:
    """Return the devices of all clients: in order for as many clients, else drawn, each once if there are enough."""
    drawn = drawn_indices(len(devices), num_clients, seed, "devices")
    if len(devices) < num_clients:
        return replace(devices, device_of=drawn)
    return replace(
        devices,
        figures={name: column[drawn] for name, column in devices.figures.items()},
        keep_ratios=devices.keep_ratios[drawn],
        tier_of_device=devices.tier_of_device[drawn],
        device_of=np.arange(num_clients),
    )


def drawn_indices(num_given: int, num_clients: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """Return the index of each client's item, `(num_clients,)`: in order for as many clients, else drawn."""
    if num_given == num_clients:
        return np.arange(num_clients)
    generator = seeding.generator(seed, purpose)
    if num_given > num_clients:
        return generator.permutation(num_given)[:num_clients]
    return generator.integers(0, num_given, num_clients)
