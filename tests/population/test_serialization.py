"""Devices are read from a file with the same bits."""

from dataclasses import fields, replace

import numpy as np
import pytest

from raysim.population import sampling, serialization
from raysim.population.profiles import DeviceProfile, Devices, OnlineIntervals, Tier

PHONE = DeviceProfile("phone", 1e9 / 3, 1e6, 5e5, battery_j=2.5, availability=0.7)
BOARD = DeviceProfile("board", 2e8, 1e5, 1e5)
ONLINE = OnlineIntervals(
    np.array([0, 2, 3]), np.array([0.0, 5.5, 1.0]), np.array([1.5, 7.0, 4.0]), np.array([9.0, 8.0])
)


def tiers(spread: float) -> list[Tier]:
    return [Tier(PHONE, 0.7, 1.0, compute_spread=spread), Tier(BOARD, 0.3, 0.25, link_spread=spread)]


def same(one: object, other: object) -> None:
    for field in fields(one):
        before, after = getattr(one, field.name), getattr(other, field.name)
        if field.name == "online" and before is not None:
            same(before, after)
        elif field.name == "figures":
            assert list(before) == list(after)
            for name in before:
                np.testing.assert_array_equal(before[name], after[name], strict=True, err_msg=name)
        elif isinstance(before, np.ndarray):
            np.testing.assert_array_equal(before, after, strict=True, err_msg=field.name)
        else:
            assert before == after, field.name


DEALT = sampling.of_tiers(tiers(0.0), 11, seed=3)


@pytest.mark.parametrize(
    "owned",
    [
        DEALT,
        sampling.of_tiers(tiers(0.4), 11, seed=3),
        replace(sampling.listed([PHONE, BOARD]), online=ONLINE),
        replace(DEALT, online=ONLINE, trace_of=np.arange(11) % 2),
    ],
    ids=["few devices", "one each", "traces", "drawn traces"],
)
def test_devices_come_back_to_the_bit(tmp_path, owned: Devices):
    path = serialization.save(owned, tmp_path / "devices.parquet")
    same(owned, serialization.load(path))
    assert [each.name for each in tmp_path.iterdir()] == ["devices.parquet"]


def test_equal_devices_of_many_clients_take_little_room(tmp_path):
    path = serialization.save(sampling.of_tiers(tiers(0.0), 200_000, seed=3), tmp_path / "devices.parquet")
    assert path.stat().st_size < 200_000


def test_another_table_is_refused(tmp_path):
    from raysim.simulation import records

    records.write_all([{"client": np.arange(3)}], tmp_path / "devices.parquet")
    with pytest.raises(ValueError, match=r"devices.parquet holds no devices: flops_per_s is missing"):
        serialization.load(tmp_path / "devices.parquet")
