"""Clocks stay finite, and a forecast ends, whatever the settings."""

import math

import pytest

from raysim.core.errors import SettingError
from raysim.simulation import forecast
from raysim.simulation.build import build_scenario
from tests.conftest import tiny_settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("population.tiers.0.flops_per_s=1e-20", "flops_per_s=1e-20 of tier "),
        ("population.tiers.1.up_bytes_per_s=1e-30", "up_bytes_per_s=1e-30 of tier "),
        ("population.tiers.2.down_bytes_per_s=1e-9", "down_bytes_per_s=1e-09 of tier "),
        ("population.tiers.0.latency_s=1e30", "latency_s=1e+30 of tier "),
        ("population.tiers.0.step_overhead_s=1e20", "step_overhead_s=1e+20 of tier "),
        ("population.tiers.0.memory_bytes_per_s=1e-29", "memory_bytes_per_s=1e-29 of tier "),
    ],
)
def test_a_clock_that_ends_never_is_refused(override, message):
    with pytest.raises(SettingError) as refused:
        build_scenario(tiny_settings(override))
    assert str(refused.value).startswith(message)
    assert "allowed: " in str(refused.value)


def test_more_flops_than_64_bits_hold_are_refused():
    with pytest.raises(SettingError, match=r"training\.epochs=2147483647 makes .* allowed: at most \d+ with these"):
        build_scenario(tiny_settings("training.epochs=2147483647", "model={name: mlp, options: {hidden: [60000]}}"))


@pytest.fixture(scope="module")
def scenario():
    return build_scenario(tiny_settings("rounds=1000000000"))


def test_a_long_run_is_forecast_from_its_first_rounds(scenario, monkeypatch):
    monkeypatch.setattr(forecast, "MAX_ROUNDS", 120)
    found = forecast.forecast(scenario)
    assert (found["forecast_rounds"], found["rounds"], found["exact"]) == (120, 10**9, False)
    whole = forecast.forecast(build_scenario(tiny_settings("rounds=120")))
    assert whole["forecast_rounds"] == whole["rounds"] == 120
    for name in ("down_bytes", "up_bytes", "train_flops", "simulated_s", "energy_j"):
        assert math.isclose(found[name], whole[name] * 1e9 / 120, rel_tol=1e-9)
    assert math.isclose(found["saved"]["bytes"], whole["saved"]["bytes"] * 1e9 / 120, rel_tol=1e-9)
    assert math.isclose(found["fedavg"]["simulated_s"], whole["fedavg"]["simulated_s"] * 1e9 / 120, rel_tol=1e-9)
    for name in ("pruning_ratio_mean", "bytes_percent_of_fedavg", "preparation_s", "tiers"):
        assert found[name] == whole[name]


def test_at_least_a_hundred_rounds_are_forecast(scenario, monkeypatch):
    monkeypatch.setattr(forecast, "MAX_CLIENT_ROUNDS", 1)
    assert forecast.forecast(scenario)["forecast_rounds"] == 100
