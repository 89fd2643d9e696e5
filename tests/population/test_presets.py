"""Presets: their figures against their sources."""

import numpy as np
import pytest
from torch import nn

from raysim.cli.device_page import settings_of
from raysim.config.population import PopulationSettings
from raysim.core.errors import SettingError
from raysim.models import cost
from raysim.population import presets, sampling, sources
from raysim.population.presets import PRESETS, preset
from raysim.population.profiles import Devices

MBIT_S = 125_000


def columns(name: str, num_clients: int = 100_000) -> Devices:
    return sampling.of_tiers(preset(name).tiers, num_clients, 0)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_settings_allow(name):
    tiers = [settings_of(tier) for tier in preset(name).tiers]
    settings = PopulationSettings.model_validate({"clients": 50, "tiers": tiers})
    assert tuple(sources.tier_of(tier) for tier in settings.tiers or ()) == preset(name).tiers
    assert PRESETS[name].sources
    assert PRESETS[name].illustrative


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_usable_as_it_is(name):
    owned = columns(name, 1000)
    assert (owned.column("availability") == 1).all()
    assert (owned.column("failure_rate") == 0).all()


def test_an_unknown_preset_is_told_with_the_nearest():
    with pytest.raises(SettingError, match=r"preset='phone-2020' is unknown; known: phones-2020, "):
        preset("phone-2020")


def test_flops_of_femnist_are_counted():
    network = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 2048),
        nn.ReLU(),
        nn.Linear(2048, 62),
    )
    per_example = cost.count(network, (1, 28, 28)).train_flops
    assert 10 * per_example == presets.FEMNIST_FLOPS_PER_BATCH
    means = [tier.device.flops_per_s for tier in preset("phones-2020").tiers]
    assert means == pytest.approx([6.213e8, 1.735e9, 5.699e9], rel=1e-3)


def test_phones_have_flashs_shares_and_relative_speeds():
    tiers = preset("phones-2020").tiers
    assert sum(tier.share for tier in tiers) == pytest.approx(1, abs=1e-12)
    assert [tier.share for tier in tiers] == pytest.approx([0.532, 0.464, 0.0045], rel=1e-3)
    slowest = tiers[0].device.flops_per_s
    assert [tier.device.flops_per_s / slowest for tier in tiers] == pytest.approx([1, 2.79, 9.17], abs=0.01)


def test_phones_train_the_widest_level_that_takes_no_longer_than_the_middle_phone():
    whole = preset("phones-2020").tiers[1].device.flops_per_s
    for tier in preset("phones-2020").tiers:
        levels = [level for level in (1, 0.5, 0.25, 0.125) if level**2 / tier.device.flops_per_s <= 1 / whole]
        assert tier.keep_ratio == levels[0]


def test_phones_speeds_spread_as_those_of_ai_benchmark():
    low, high = np.quantile(columns("phones-2020").column("flops_per_s"), (0.1, 0.9))
    assert high / low == pytest.approx(4.4, abs=0.1)


@pytest.mark.parametrize(
    ("figure", "median", "ratio"), [("down_bytes_per_s", 35, 73 / 26), ("up_bytes_per_s", 26, 47 / 16)]
)
def test_phones_bandwidths_spread_as_flashs_wifi(figure, median, ratio):
    low, middle, high = np.quantile(columns("phones-2020").column(figure) / MBIT_S, (0.1, 0.5, 0.9))
    assert middle == pytest.approx(median, rel=0.02)
    assert high / low == pytest.approx(ratio, rel=0.05)


def test_a_quarter_of_the_ram_is_for_training():
    owned = columns("phones-2020")
    medians = [np.mean(owned.column("memory_bytes")[owned.tier_of == tier]) for tier in range(3)]
    assert medians == pytest.approx([0.75e9, 1.5e9, 2e9], rel=0.05)


@pytest.mark.parametrize(
    ("name", "shares", "keep_ratios"),
    [
        ("phones-2020", (0.532, 0.464, 0.0045), (0.5, 1, 1)),
        ("heterofl-a-e", (0.2,) * 5, (1, 0.5, 0.25, 0.125, 0.0625)),
        ("fedrolex-real", (0.06, 0.10, 0.11, 0.18, 0.55), (1, 0.5, 0.25, 0.125, 0.0625)),
        ("ca-hfp-rank0", (0.5, 0.5), (1, 0.75)),
        ("ca-hfp-rank1", (0.5, 0.5), (0.75, 0.5)),
        ("ca-hfp-rank2", (0.5, 0.5), (0.5, 0.25)),
        ("ca-hfp-rank3", (0.5, 0.5), (0.25, 0.1)),
        ("ca-hfp-ranks", (0.125, 0.25, 0.25, 0.25, 0.125), (1, 0.75, 0.5, 0.25, 0.1)),
        ("uniform", (1,), (1,)),
    ],
)
def test_shares_and_widths_are_those_of_the_source(name, shares, keep_ratios):
    assert [tier.share for tier in preset(name).tiers] == pytest.approx(list(shares), rel=1e-3)
    assert tuple(tier.keep_ratio for tier in preset(name).tiers) == keep_ratios


def test_the_table_is_complete():
    ranks = {f"ca-hfp-rank{rank}" for rank in range(4)}
    assert set(PRESETS) == {"phones-2020", "heterofl-a-e", "fedrolex-real", "uniform", "ca-hfp-ranks"} | ranks


def test_devices_made_for_a_width_take_as_long_for_it():
    for tier in preset("heterofl-a-e").tiers:
        assert tier.device.flops_per_s == pytest.approx(1e10 * tier.keep_ratio**2)
        assert tier.device.down_bytes_per_s == pytest.approx(86 * MBIT_S * tier.keep_ratio)


def test_everyone_is_the_same_on_uniform():
    owned = columns("uniform", 100)
    assert len(owned.figures["flops_per_s"]) == 1
    assert owned.column("flops_per_s")[0] == pytest.approx(1.735e9, rel=1e-3)
