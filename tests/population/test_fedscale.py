"""FedScale's traces: real small pickles, and pickles that are refused."""

import json
import os
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest

from raysim.core.errors import SettingError, shortened
from raysim.population import fedscale
from raysim.population.profiles import DeviceProfile
from raysim.population.sampling import listed

CAPACITY = {7: {"computation": 60.0, "communication": 8000.0}, 3: {"computation": 600, "communication": 80.5}}
AVAILABILITY = {
    5: {"duration": 30, "inactive": [20, 50], "finish_time": 100, "active": [10, 40], "model": "X"},
    9: {"duration": 10, "inactive": [70.5], "finish_time": 80.0, "active": [60]},
}


@pytest.fixture
def dump(tmp_path):
    def dumped(content: object, protocol: int = 4) -> str:
        (tmp_path / "trace").write_bytes(pickle.dumps(content, protocol))
        return str(tmp_path / "trace")

    return dumped


def refusal(read, path: str) -> str:
    with pytest.raises(SettingError) as refused:
        read(path)
    assert path in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("protocol", range(6))
def test_speeds_follow_from_milliseconds_and_kilobits(dump, protocol):
    devices = fedscale.read_capacity(dump(CAPACITY, protocol))
    assert devices.column("flops_per_s").tolist() == [1e10, 1e9]  # 6e8 FLOPs in 0.06 s and 0.6 s
    assert devices.column("down_bytes_per_s").tolist() == [1e6, 10062.5]
    assert devices.column("up_bytes_per_s").tolist() == [1e6, 10062.5]
    assert [devices.tiers[tier] for tier in devices.tier_of] == ["fast", "slow"]
    assert devices.keep_ratio.tolist() == [1, 1]


def test_the_inference_behind_the_milliseconds_may_be_another(dump):
    assert fedscale.read_capacity(dump(CAPACITY), 1.2e9).column("flops_per_s").tolist() == [2e10, 2e9]


def test_json_holds_the_same(tmp_path):
    path = tmp_path / "capacity.json"
    path.write_text(json.dumps(CAPACITY), encoding="utf-8")
    assert fedscale.read_capacity(str(path)).column("flops_per_s").tolist() == [1e10, 1e9]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.uint8, np.complex128])
def test_single_numbers_of_numpy_are_numbers(dump, protocol, kind):
    content = {0: {"computation": kind(60), "communication": kind(80)}}
    if kind is np.complex128:
        assert "no pickle or JSON" in refusal(fedscale.read_capacity, dump(content, protocol))
    else:
        devices = fedscale.read_capacity(dump(content, protocol))
        assert devices.column("flops_per_s").tolist() == [1e10]
        assert devices.column("up_bytes_per_s").tolist() == [1e4]


class Shell:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_cannot_run_a_command(dump, tmp_path, protocol):
    path = dump({1: {"computation": Shell(tmp_path / "harm"), "communication": 1.0}}, protocol)
    told = refusal(fedscale.read_capacity, path)
    assert re.search(r"refers to (posix|nt)\.system, which could run code", told)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (eval, r"(builtins|__builtin__)\.eval"),
        (np.arange(3), r"numpy\._?core\.(multiarray\._reconstruct|numeric\._frombuffer)"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (DeviceProfile("a", 1, 1, 1), "raysim.population.profiles.DeviceProfile|copyreg._reconstructor"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_any_other_global_is_named_and_refused(dump, content, named, protocol):
    assert re.search(f"refers to ({named}), which", refusal(fedscale.read_capacity, dump({1: content}, protocol)))


def test_what_a_pickle_does_to_a_stand_in_stays_with_it(dump, tmp_path):
    spoilt = b"\x80\x02cnumpy\ndtype\nN}X\x08\x00\x00\x00__init__K\x01s\x86b."
    (tmp_path / "spoilt").write_bytes(spoilt)
    refusal(fedscale.read_capacity, str(tmp_path / "spoilt"))
    path = dump({0: {"computation": np.float64(60), "communication": 1.0}})
    assert fedscale.read(path, "any")[0]["computation"] == 60


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no pickle or JSON of dicts, lists, numbers and text (EOFError"),
        (b"name,flops_per_s\n", "no pickle or JSON"),
        (b"\x80\x04garbage", "no pickle or JSON"),
        (b"{not json", "no pickle or JSON"),
        (b"\x80\x02X\x02\x00\x00\x001,Q.", "the outside object '1,'"),
        (pickle.dumps([1, 2]), "holds list; allowed: a dict of records with computation, communication by id"),
        (pickle.dumps({}), "holds nothing; allowed: a dict"),
        (pickle.dumps({1: 2}), "device 1 holds int; needed: computation, communication"),
        (pickle.dumps({"a": {"computation": 1}}), "device 'a' holds computation; needed: computation, communication"),
    ],
)
def test_anything_else_is_told(tmp_path, content, told):
    path = tmp_path / "trace"
    path.write_bytes(content)
    assert told in refusal(fedscale.read_capacity, str(path))


def test_a_missing_file_is_told(tmp_path):
    assert "cannot be read: No such file" in refusal(fedscale.read_capacity, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("value", [0, -1.5, float("nan"), float("inf"), "60", None, True, 10**400])
@pytest.mark.parametrize("key", ["computation", "communication"])
def test_a_wrong_speed_is_told_with_its_device(dump, key, value):
    path = dump({**CAPACITY, 4: {**CAPACITY[3], key: value}})
    told = refusal(fedscale.read_capacity, path)
    assert f"device 4 has {key}={shortened(value)}; allowed: a number above 0 and finite" in told


def test_intervals_are_read_in_the_order_of_the_file(dump):
    online = fedscale.read_availability(dump(AVAILABILITY))
    assert online.offsets.tolist() == [0, 2, 3]
    assert online.starts.tolist() == [10, 40, 60]
    assert online.ends.tolist() == [20, 50, 70.5]
    assert online.periods.tolist() == [100, 80]


def test_intervals_that_touch_are_one_and_empty_or_late_ones_none(dump):
    online = fedscale.read_availability(
        dump(
            {
                0: {"active": [0, 5, 30], "inactive": [5, 9, 30], "finish_time": 50},
                1: {"active": [], "inactive": [], "finish_time": 50},
                2: {"active": [9, 40, 60], "inactive": [10, 55, 70], "finish_time": 50},
            }
        )
    )
    assert online.offsets.tolist() == [0, 1, 1, 3]
    assert online.starts.tolist() == [0, 9, 40]
    assert online.ends.tolist() == [9, 10, 50]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"active": [10]}, "device 9 has 1 active and 2 inactive seconds; allowed: equally many"),
        ({"active": [30, 40]}, "device 9 has active=30 with inactive=20 out of order"),
        ({"active": [10, 15]}, "device 9 has active=15 with inactive=50 out of order"),
        ({"active": [40, 10], "inactive": [50, 20]}, "device 9 has active=10 with inactive=20 out of order"),
        ({"active": [-1, 40]}, "device 9 has -1 in active; allowed: seconds, at least 0"),
        ({"inactive": [20, float("nan")]}, "device 9 has nan in inactive"),
        ({"inactive": [20, "50"]}, "device 9 has '50' in inactive"),
        ({"active": 10}, "device 9 has active=10; allowed: a list of seconds"),
        ({"active": [[10], [40]]}, "device 9 has [10] in active"),
        ({"finish_time": 0}, "device 9 has finish_time=0; allowed: a number above 0"),
    ],
)
def test_wrong_intervals_are_told_with_their_device(dump, changed, told):
    usual = {"active": [10, 40], "inactive": [20, 50], "finish_time": 100}
    path = dump({5: usual, 9: {**usual, **changed}, 1: usual})
    assert told in refusal(fedscale.read_availability, path)


def test_a_capacity_file_is_no_availability_file(dump):
    told = refusal(fedscale.read_availability, dump(CAPACITY))
    assert "device 7 holds computation, communication; needed: active, inactive, finish_time" in told


def test_traces_in_which_nobody_is_ever_online_are_refused(dump):
    path = dump({5: {"active": [], "inactive": [], "finish_time": 1}})
    assert "holds no device that is ever online" in refusal(fedscale.read_availability, path)


def test_traces_are_dealt_in_order_or_drawn(dump):
    path = dump(AVAILABILITY)

    def traces_of(num_clients, seed):
        owned = listed([DeviceProfile("a", 1, 1, 1)], device_of=np.zeros(num_clients, np.int64))
        return fedscale.with_availability(owned, path, seed).trace_of.tolist()

    assert traces_of(2, 0) == [0, 1]
    assert sorted({tuple(traces_of(1, seed)) for seed in range(20)}) == [(0,), (1,)]
    assert set(traces_of(50, 0)) == {0, 1}
    assert traces_of(50, 0) == traces_of(50, 0) != traces_of(50, 1)


@pytest.mark.parametrize("figure", ["availability", "availability_swing"])
def test_availability_is_not_told_twice(dump, figure):
    owned = listed([DeviceProfile("a", 1, 1, 1), DeviceProfile("b", 1, 1, 1, **{figure: 0.5})])
    with pytest.raises(SettingError, match=f"^{figure}=0.5 has no effect with population.devices.availability="):
        fedscale.with_availability(owned, dump(AVAILABILITY), 0)
