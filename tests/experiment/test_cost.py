"""What a run has cost."""

import doctest

import pytest

from raysim.experiment import cost
from raysim.experiment.cost import Prices, costs_of


def test_the_examples_of_prices_hold() -> None:
    assert doctest.testmod(cost) == (0, 1)


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (Prices(), {"device_kwh": 2.0}),
        (Prices(price_per_kwh=0.25), {"device_kwh": 2.0, "device_price": 0.5}),
        (Prices(carbon_g_per_kwh=300), {"device_kwh": 2.0, "device_co2_g": 600.0}),
        (Prices(cluster_watts=200), {"device_kwh": 2.0, "cluster_kwh": 0.1}),
        (Prices(cluster_price_per_hour=3.0), {"device_kwh": 2.0, "cluster_price": 1.5}),
        (
            Prices(price_per_kwh=0.25, carbon_g_per_kwh=300, cluster_watts=200),
            {"device_kwh": 2.0, "device_price": 0.5, "device_co2_g": 600.0, "cluster_kwh": 0.1,
             "cluster_price": 0.025, "cluster_co2_g": 30.0},
        ),
        (  # the price of an hour holds its energy
            Prices(price_per_kwh=0.25, cluster_watts=200, cluster_price_per_hour=3.0),
            {"device_kwh": 2.0, "device_price": 0.5, "cluster_kwh": 0.1, "cluster_price": 1.5},
        ),
        (Prices(price_per_kwh=0.0), {"device_kwh": 2.0, "device_price": 0.0}),
    ],
)  # fmt: skip
def test_money_and_co2_of_2_kwh_on_devices_and_half_an_hour_of_a_cluster(prices, expected) -> None:
    assert costs_of(prices, 7.2e6, 1800.0) == pytest.approx(expected, rel=1e-12)
