"""Tables of devices in files: those that are read, those that are refused, and the messages."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from raysim.config.population import ProfileSettings
from raysim.core.errors import SettingError
from raysim.population import tables as device_files
from raysim.population.profiles import FIGURES, DeviceProfile

TABLE = """name,flops_per_s,down_bytes_per_s,up_bytes_per_s,keep_ratio,memory_bytes,latency_s
board,1e9,125000,62500,0.25,5e8,
phone,4000000000,1.5e6,750000,1,,0.02
board,2e9,250000,62500,0.5,1e9,0.1
"""


@pytest.fixture
def write(tmp_path):
    def written(content: str, name: str = "devices.csv") -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return str(tmp_path / name)

    return written


def refusal(path: str) -> str:
    with pytest.raises(SettingError) as refused:
        device_files.read(path)
    assert f"population.devices.path={path!r}" in str(refused.value)
    return str(refused.value)


def test_a_table_is_read_row_by_row(write):
    devices = device_files.read(write(TABLE))
    assert {column.dtype for column in (*devices.figures.values(), devices.keep_ratios)} == {np.dtype(np.float64)}
    assert devices.tiers == ("board", "phone")
    assert devices.tier_of.tolist() == [0, 1, 0]
    assert devices.keep_ratio.tolist() == [0.25, 1.0, 0.5]
    assert devices.profile(0) == DeviceProfile("board", 1e9, 125000, 62500, memory_bytes=5e8)
    assert devices.profile(1) == DeviceProfile("phone", 4e9, 1.5e6, 750000, latency_s=0.02)
    assert devices.profile(2) == DeviceProfile("board", 2e9, 250000, 62500, memory_bytes=1e9, latency_s=0.1)


def test_parquet_gives_what_csv_gives(write, tmp_path):
    columns = {
        "up_bytes_per_s": [62500, 750000, 62500], "down_bytes_per_s": [125000.0, 1.5e6, 250000.0],
        "flops_per_s": [1e9, 4e9, 2e9], "keep_ratio": pa.array([0.25, 1, 0.5], pa.float32()),
        "memory_bytes": [500_000_000, None, 1_000_000_000], "latency_s": [None, 0.02, 0.1],
        "name": pa.array(["board", "phone", "board"]).dictionary_encode(),
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "devices.parquet")
    one, other = device_files.read(write(TABLE)), device_files.read(str(tmp_path / "devices.parquet"))
    assert [one.profile(row) for row in range(3)] == [other.profile(row) for row in range(3)]
    assert one.keep_ratio.tolist() == other.keep_ratio.tolist()


def test_devices_without_names_are_thirds_by_speed(write):
    speeds = [5, 1, 3, 2, 6, 4]
    lines = "".join(f"{speed}e9,1,1\n" for speed in speeds)
    devices = device_files.read(write(f"flops_per_s,down_bytes_per_s,up_bytes_per_s\n{lines}"))
    assert devices.tiers == ("slow", "medium", "fast")
    assert devices.tier_of.tolist() == [2, 0, 1, 0, 2, 1]


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("-1", "row 3: flops_per_s=-1 is not allowed; allowed: a number above 0 and finite"),
        ("0", "row 3: flops_per_s=0 is not allowed"),
        ("nan", "row 3: flops_per_s=nan is not allowed"),
        ("inf", "row 3: flops_per_s=inf is not allowed"),
        ("fast", "row 3: flops_per_s=fast is not allowed; allowed: a number above 0"),
        ("", "row 3: flops_per_s= is not allowed"),
    ],
)
def test_a_wrong_cell_is_told_with_its_row_and_column(write, cell, told):
    assert told in refusal(write(TABLE.replace("board,2e9", f"board,{cell}")))


@pytest.mark.parametrize(
    ("wrong", "right", "told"),
    [
        ("1e9,125000", "1e9,", "row 1: down_bytes_per_s= is not allowed"),
        ("board,1e9", "a board,1e9", "row 1: name=a board is not allowed; allowed: letters, digits, - and _"),
        ("board,2e9", ",2e9", "row 3: name= is not allowed"),
        ("5e8", "none", "row 1: memory_bytes=none is not allowed; allowed: a number above 0 and finite, or an empty"),
        (",0.02", ",0.02,7", "cannot be read as .csv"),
        ("latency_s", "latency", "column 'latency' is unknown; did you mean latency_s? Known: latency_s, "),
        ("latency_s", "memory_bytes", "column 'memory_bytes' is given 2 times"),
        ("up_bytes_per_s", "idle_watts", "column 'up_bytes_per_s' is missing; needed: flops_per_s, down_bytes_per_s"),
    ],
)
def test_a_wrong_table_is_told(write, wrong, right, told):
    assert told in refusal(write(TABLE.replace(wrong, right)))


def test_what_is_no_table_is_told(write, tmp_path):
    assert "holds no devices" in refusal(write(TABLE.splitlines()[0] + "\n"))
    assert "cannot be read as .csv" in refusal(write(""))
    assert "cannot be read as .parquet" in refusal(write(TABLE, "devices.parquet"))
    assert "does not exist" in refusal(str(tmp_path / "nowhere.csv"))
    assert "ends in .csv or .parquet" in refusal(write(TABLE, "devices.xlsx"))


@pytest.mark.parametrize("column", [["1e9", "2e9"], [True, False]])
def test_numbers_in_parquet_are_numbers(tmp_path, column):
    path = tmp_path / "devices.parquet"
    parquet.write_table(pa.table({"flops_per_s": column, "down_bytes_per_s": [1, 1], "up_bytes_per_s": [1, 1]}), path)
    assert f"row 1: flops_per_s={column[0]} is not allowed" in refusal(str(path))


def is_setting(name: str, value: float) -> bool:
    others = dict.fromkeys(device_files.REQUIRED, 1.0) | {"battery_j": 1.0}  # charging needs a battery
    try:
        ProfileSettings.model_validate({"name": "any", **others, name: value})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", ["keep_ratio", *FIGURES])
def test_a_file_allows_what_the_settings_allow(write, name):
    for value in (-1.0, 0.0, 1e-9, 0.5, 1.0, 1.5, 1e300, np.inf, np.nan):
        header = [other for other in device_files.REQUIRED if other != name]
        path = write(f"{','.join([name, *header])}\n{','.join([str(value), *['1'] * len(header)])}\n")
        if is_setting(name, value):
            devices = device_files.read(path)
            assert (devices.keep_ratio if name == "keep_ratio" else devices.column(name)).tolist() == [value]
        else:
            assert f"row 1: {name}={value:g} is not allowed" in refusal(path)
