"""From settings to the devices of clients: each way to give them."""

import pickle
import time

import numpy as np
import pytest

from raysim.config.experiment import ExperimentSettings
from raysim.config.loader import validated
from raysim.config.population import PopulationSettings
from raysim.core.errors import SettingError
from raysim.population import sampling, sources
from raysim.population.presets import preset
from raysim.population.profiles import DeviceProfile, Devices
from raysim.simulation.build import check_names

SPEEDS = {"down_bytes_per_s": 1.0, "up_bytes_per_s": 1.0}


def given(num_clients: int, seed: int = 0, **source: object) -> Devices:
    settings = PopulationSettings.model_validate({"clients": num_clients, "devices": source})
    return sources.of_settings(settings, seed)


def profiles(*speeds: float, **more: object) -> list[dict[str, object]]:
    return [{"name": f"d{int(speed)}", "flops_per_s": speed, **SPEEDS, **more} for speed in speeds]


def speeds_of(owned: Devices) -> list[float]:
    return owned.column("flops_per_s").tolist()


def test_tiers_are_dealt_as_before():
    tiers = [
        {**profiles(1.0)[0], "share": 0.75, "keep_ratio": 0.5, "compute_spread": 0.2, "battery_j": 9.0},
        {**profiles(2.0)[0], "share": 0.25},
    ]
    settings = PopulationSettings.model_validate({"clients": 8, "tiers": tiers})
    owned = sources.of_settings(settings, 0)
    assert np.bincount(owned.tier_of).tolist() == [6, 2]
    assert owned.keep_ratio[owned.tier_of == 0].tolist() == [0.5] * 6
    assert owned.column("battery_j")[owned.tier_of == 0].tolist() == [9.0] * 6
    assert len(set(speeds_of(owned))) == 7


def test_a_preset_is_its_tiers():
    owned = given(40, 3, preset="phones-2020")
    expected = sampling.of_tiers(preset("phones-2020").tiers, 40, 3)
    assert [owned.profile(client) for client in range(40)] == [expected.profile(client) for client in range(40)]


def test_as_many_profiles_as_clients_are_dealt_in_order():
    owned = given(3, profiles=[*profiles(3, 1, keep_ratio=0.5), *profiles(3, keep_ratio=0.25)])
    assert speeds_of(owned) == [3, 1, 3]
    assert owned.keep_ratio.tolist() == [0.5, 0.5, 0.25]
    assert owned.tiers == ("d3", "d1")
    assert owned.tier_of.tolist() == [0, 1, 0]
    assert owned.profile(1) == DeviceProfile("d1", 1, 1, 1)


def test_more_devices_than_clients_are_drawn_once_each():
    every = profiles(*range(1, 11), keep_ratio=0.5)
    assert len({tuple(speeds_of(given(4, seed, profiles=every))) for seed in range(20)}) > 10
    for seed in range(20):
        owned = given(4, seed, profiles=every)
        assert len(set(speeds_of(owned))) == 4
        assert all(owned.profile(client).name == f"d{speed:g}" for client, speed in enumerate(speeds_of(owned)))
        assert len(owned.figures["flops_per_s"]) == 4  # nothing is carried around of those nobody has
        assert owned.keep_ratio.tolist() == [0.5] * 4


def test_fewer_devices_than_clients_are_drawn_again():
    owned = given(3000, 1, profiles=profiles(1, 2, 3))
    assert np.bincount(owned.device_of) == pytest.approx([1000] * 3, rel=0.1)
    assert speeds_of(owned) == speeds_of(given(3000, 1, profiles=profiles(1, 2, 3)))
    assert speeds_of(owned) != speeds_of(given(3000, 2, profiles=profiles(1, 2, 3)))


def test_a_file_is_dealt_as_a_list_is(tmp_path):
    path = tmp_path / "devices.csv"
    path.write_text("name,flops_per_s,down_bytes_per_s,up_bytes_per_s\na,1,1,1\nb,2,1,1\nc,3,1,1\n", encoding="utf-8")
    for num_clients in (3, 2, 9):
        listed = given(num_clients, 5, profiles=profiles(1, 2, 3))
        assert speeds_of(given(num_clients, 5, path=str(path))) == speeds_of(listed)


def test_a_trace_is_dealt_and_so_is_availability(tmp_path):
    capacity, availability = tmp_path / "capacity", tmp_path / "availability"
    capacity.write_bytes(pickle.dumps({k: {"computation": 60.0 * k, "communication": 8.0 * k} for k in (1, 2)}))
    intervals = {"active": [0], "inactive": [5], "finish_time": 10}
    availability.write_bytes(pickle.dumps({k: {**intervals, "finish_time": 10 + k} for k in range(4)}))
    owned = given(2, fedscale=str(capacity), fedscale_flops=6e9, availability=str(availability))
    assert speeds_of(owned) == [1e11, 5e10]
    assert owned.column("up_bytes_per_s").tolist() == [1000, 2000]
    assert owned.online is not None
    assert owned.trace_of is not None
    assert len(set(owned.trace_of.tolist())) == 2
    with_preset = given(4, preset="uniform", availability=str(availability))
    assert with_preset.online is not None
    assert with_preset.online.periods[with_preset.trace_of].tolist() == [10, 11, 12, 13]


def test_more_than_twelve_names_are_refused(tmp_path):
    assert len(given(12, profiles=profiles(*range(1, 13))).tiers) == 12
    with pytest.raises(SettingError, match=r"profiles: 13 different names, which become tiers; allowed: at most 12"):
        given(13, profiles=profiles(*range(1, 14)))
    lines = "".join(f"t{speed},{speed},1,1\n" for speed in range(1, 14))
    (tmp_path / "d.csv").write_text(f"name,flops_per_s,down_bytes_per_s,up_bytes_per_s\n{lines}", encoding="utf-8")
    with pytest.raises(SettingError, match=r"path='.*d.csv': 13 different names"):
        given(13, path=str(tmp_path / "d.csv"))


@pytest.mark.parametrize(
    ("speeds", "names", "tier_of"),
    [
        ([3, 1, 2], ("slow", "medium", "fast"), [2, 0, 1]),
        ([5, 1], ("slow", "fast"), [1, 0]),
        ([7, 7, 7, 7], ("medium",), [0, 0, 0, 0]),
        ([1, 9, 9, 9], ("slow", "medium"), [0, 1, 1, 1]),
        ([9], ("medium",), [0]),
    ],
)
def test_thirds_by_speed_keep_equal_speeds_together(speeds, names, tier_of):
    found, of_device = sampling.thirds_by_speed(np.array(speeds, np.float64))
    assert (found, of_device.tolist()) == (names, tier_of)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"profiles": profiles(-1)}, "population.devices.profiles.0.flops_per_s=-1"),
        ({"profiles": profiles(0)}, "population.devices.profiles.0.flops_per_s=0"),
        ({"profiles": profiles(1, availability=float("nan"))}, "availability=nan is not allowed"),
        ({"profiles": profiles(1, failure_rate=float("nan"))}, "failure_rate=nan is not allowed"),
        ({"profiles": profiles(1, failure_rate=1.0)}, "failure_rate=1.0 is not allowed"),
        ({"profiles": profiles(1, flops=1.0)}, "did you mean population.devices.profiles.0.flops_per_s?"),
        ({"profiles": []}, "population.devices.profiles=[] is not allowed"),
        ({"preset": "uniform", "path": "x.csv"}, "exactly one of preset, profiles, path, fedscale must be given"),
        ({"preset": "uniform", "fedscale_flops": 1.0}, "fedscale_flops=1 has no effect without fedscale"),
        ({}, "exactly one of preset, profiles, path, fedscale must be given, found none"),
    ],
)
def test_wrong_settings_are_told(settings, told):
    with pytest.raises(SettingError) as refused:
        experiment(settings)
    assert told in str(refused.value)


def experiment(source: dict[str, object]) -> ExperimentSettings:
    population = {"clients": 2, "devices": source}
    selection = {"clients_per_round": 2}
    return validated({"rounds": 1, "population": population, "selection": selection}, ExperimentSettings)


def test_a_wrong_preset_is_told_before_anything_is_loaded():
    with pytest.raises(SettingError, match=r"population.devices.preset='uniforn' is unknown; known: uniform, "):
        check_names(experiment({"preset": "uniforn"}))


@pytest.mark.slow
def test_half_a_million_traced_devices_are_dealt_to_a_million_clients_in_seconds(tmp_path):
    generator = np.random.default_rng(0)
    values = zip(
        generator.uniform(10, 900, 500_000).tolist(), generator.uniform(50, 1e5, 500_000).tolist(), strict=True
    )
    path = tmp_path / "capacity"
    path.write_bytes(pickle.dumps({k: {"computation": a, "communication": b} for k, (a, b) in enumerate(values)}))
    started = time.perf_counter()
    owned = given(1_000_000, fedscale=str(path))
    assert time.perf_counter() - started < 30  # measured: 1 to 2 s
    assert len(owned) == 1_000_000
    assert len(owned.figures["flops_per_s"]) == 500_000
