"""Compute what a run costs in money and CO2: its simulated devices, and the machines that simulate them."""

from dataclasses import dataclass

JOULES_PER_KWH = 3.6e6
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of energy and machines; None: not known.

    Attributes:
        price_per_kwh: In any currency.
        carbon_g_per_kwh: Grams of CO2.
        cluster_watts: The power of the machines that run the simulation.
        cluster_price_per_hour: The price of an hour of these, energy included, in the same currency.
    """

    price_per_kwh: float | None = None
    carbon_g_per_kwh: float | None = None
    cluster_watts: float | None = None
    cluster_price_per_hour: float | None = None


def costs_of(prices: Prices, energy_j: float, wall_s: float) -> dict[str, float]:
    """Return the energy, money and CO2 of a run, as far as prices are known.

    Args:
        prices: Prices of energy and machines.
        energy_j: Joules that the simulated devices spent.
        wall_s: Measured seconds that the machines ran.

    >>> costs_of(Prices(price_per_kwh=0.5, carbon_g_per_kwh=400, cluster_watts=100), 7.2e6, 1800)
    {'device_kwh': 2.0, 'device_price': 1.0, 'device_co2_g': 800.0, 'cluster_kwh': 0.05, 'cluster_price': 0.025, \
'cluster_co2_g': 20.0}
    """
    costs = {"device_kwh": energy_j / JOULES_PER_KWH} | _of_energy(prices, "device", energy_j)
    if prices.cluster_watts is not None:
        cluster_j = prices.cluster_watts * wall_s
        costs |= {"cluster_kwh": cluster_j / JOULES_PER_KWH} | _of_energy(prices, "cluster", cluster_j)
    if prices.cluster_price_per_hour is not None:
        costs["cluster_price"] = prices.cluster_price_per_hour * wall_s / SECONDS_PER_HOUR
    return costs


def _of_energy(prices: Prices, whose: str, energy_j: float) -> dict[str, float]:
    known = {"price": prices.price_per_kwh, "co2_g": prices.carbon_g_per_kwh}
    return {f"{whose}_{name}": each * energy_j / JOULES_PER_KWH for name, each in known.items() if each is not None}
