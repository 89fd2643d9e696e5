"""Files of users that are larger than they look are refused before they are read."""

import json
import os
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from raysim.core.errors import SettingError
from raysim.core.storage import user_files
from raysim.data import given
from raysim.data.rules import PartitionOptions, RowPool
from raysim.population import fedscale, tables

SPEEDS = ("flops_per_s", "down_bytes_per_s", "up_bytes_per_s")


@pytest.fixture
def bomb(tmp_path):
    def written(columns: dict[str, np.ndarray], times: int) -> str:
        table = pa.table(columns)
        with parquet.ParquetWriter(tmp_path / "bomb.parquet", table.schema, compression="zstd") as writer:
            for _ in range(times):
                writer.write_table(table)
        return str(tmp_path / "bomb.parquet")

    return written


def peak_and_refusal(read, *arguments) -> tuple[int, str]:
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    with pytest.raises(SettingError) as refused:
        read(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return max(peak, pa.total_allocated_bytes() - before), str(refused.value)


def pool(path: str, rows: int = 50) -> RowPool:
    return RowPool(np.zeros(rows, np.int64), 2, PartitionOptions(path=path), np.random.default_rng(0))


def test_a_table_of_many_millions_of_devices_is_refused_by_its_footer(bomb):
    path = bomb(dict.fromkeys(SPEEDS, np.full(10**6, 1e9)), 12)
    assert os.path.getsize(path) < 10**6
    peak, message = peak_and_refusal(tables.read, path)
    assert message.endswith("has 12,000,000 rows; allowed: at most 2,000,000")
    assert peak < 10**7


def test_a_partition_with_more_rows_than_the_data_is_refused_by_its_footer(bomb):
    path = bomb({"client": np.zeros(10**6, np.int64), "row": np.zeros(10**6, np.int64)}, 3)
    peak, message = peak_and_refusal(given.from_file, pool(path))
    assert message.endswith("has 3,000,000 rows; allowed: at most 50")
    assert peak < 10**7


def test_a_partition_in_an_archive_that_grows_is_refused_by_its_directory(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", client=np.zeros(10**7, np.int64), row=np.zeros(10**7, np.int64))
    assert (tmp_path / "a.npz").stat().st_size < 10**6
    peak, message = peak_and_refusal(given.from_file, pool(str(tmp_path / "a.npz")))
    assert "holds 160,000," in message
    assert peak < 10**7


def test_long_names_of_devices_are_read_once_each(bomb):
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array(["a" * 10**5]))
    path = bomb(dict.fromkeys(SPEEDS, np.full(10_000, 1e9)) | {"name": names}, 1)
    peak, message = peak_and_refusal(tables.read, path)
    assert "row 1: name=aaa" in message
    assert peak < 10**8  # a tenth of what the names take, each for itself
    assert len(message) < 1000


def test_columns_of_lists_are_refused(bomb):
    columns = dict.fromkeys(SPEEDS[1:], np.ones(2)) | {SPEEDS[0]: pa.array([[1.0] * 100, [2.0]])}
    _, message = peak_and_refusal(tables.read, bomb(columns, 1))
    assert "column 'flops_per_s' holds lists or records; allowed: single values" in message


def test_other_columns_of_a_partition_are_left_out(bomb):
    path = bomb({"client": np.array([0, 1]), "row": np.array([3, 4]), "note": np.array(["x", "y"])}, 1)
    assert [part.tolist() for part in given.from_file(pool(path))] == [[3], [4]]


def test_deep_json_and_huge_numbers_are_refused(tmp_path):
    for content in ("[" * 100_000, "[[" + "9" * 5000 + "],[1]]", "[[1e999],[1]]", "[[18446744073709551616],[1]]"):
        (tmp_path / "deep.json").write_text(content)
        _, message = peak_and_refusal(given.from_file, pool(str(tmp_path / "deep.json"), 10**5))
        assert message.startswith("data.partition.path='")
        assert len(message) < 1000


def test_pipes_folders_and_files_beyond_memory_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(SettingError, match="is no file; allowed: a file"):
            user_files.check_file("a", str(path))
    with pytest.raises(SettingError, match="is no file"):
        tables.read(str(tmp_path / "pipe.csv"))
    with pytest.raises(SettingError, match="is no file"):
        fedscale.read_capacity(str(tmp_path / "pipe.csv"))
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(SettingError, match="GB of memory"):
        fedscale.read_availability(str(tmp_path / "sparse.json"))
    with pytest.raises(SettingError, match=r"has 1,099,511,627,776 bytes; allowed: at most"):
        given.from_file(pool(str(tmp_path / "sparse.json")))


def test_a_trace_that_holds_a_value_many_times_is_refused_in_a_short_message(tmp_path):
    shared: list = [1]
    for _ in range(40):
        shared = [shared] * 10
    import pickle

    (tmp_path / "trace.pkl").write_bytes(pickle.dumps({1: {"computation": shared, "communication": 1}}))
    peak, message = peak_and_refusal(fedscale.read_capacity, str(tmp_path / "trace.pkl"))
    assert "computation=[" in message
    assert len(message) < 1000
    assert peak < 10**8


def test_a_damaged_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("client.npy", json.dumps([0, 1]))
        archive.writestr("row.npy", b"\x93NUMPY")
    _, message = peak_and_refusal(given.from_file, pool(str(tmp_path / "a.npz")))
    assert "cannot be read" in message
