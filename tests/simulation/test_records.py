import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysim.core.tensors import Columns
from raysim.simulation import records


def clients(round: int, count: int = 3) -> Columns:
    accuracy = np.linspace(0.1, 0.9, count)
    accuracy[0] = np.nan
    return {
        "round": np.full(count, round),
        "client": np.arange(count),
        "tier": np.array(["phone", "microcontroller", "phone"])[:count],
        "accuracy": accuracy,
        "down_bytes": np.full(count, 2**53 + 1),
    }


def test_a_rounds_clients_are_one_table(tmp_path):
    path = records.write_part(clients(7), tmp_path / "clients", 7)
    assert path.path == tmp_path / "clients" / "round_000007.parquet"
    table = pq.read_table(path)
    assert table.column_names == ["round", "client", "tier", "accuracy", "down_bytes"]
    assert table["down_bytes"].to_pylist() == [2**53 + 1] * 3
    assert table["tier"].to_pylist() == ["phone", "microcontroller", "phone"]
    assert table.schema.types == [pa.int64(), pa.int64(), pa.string(), pa.float64(), pa.int64()]


def test_what_was_not_scored_is_null(tmp_path):
    table = pq.read_table(records.write_part(clients(1), tmp_path, 1))
    assert table["accuracy"].to_pylist() == [None, 0.5, 0.9]


def test_a_part_replaces_what_a_stopped_run_left(tmp_path):
    (tmp_path / ".round_000001.parquet.partial").write_bytes(b"half")
    records.write_part(clients(1, count=2), tmp_path, 1)
    records.write_part(clients(1), tmp_path, 1)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["round_000001.parquet"]
    assert pq.read_table(tmp_path / "round_000001.parquet").num_rows == 3


def test_merged_parts_are_in_the_order_of_the_rounds_a_row_group_each(tmp_path):
    for round in (3, 2, 1):
        records.write_part(clients(round), tmp_path / "clients", round)
    path = records.merge_parts(tmp_path / "clients", tmp_path / "clients.parquet")
    merged = pq.ParquetFile(path)
    assert merged.num_row_groups == 3
    assert merged.read()["round"].to_pylist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_rounds_in_which_nobody_was_scored_merge_with_the_others(tmp_path):
    nobody = clients(1) | {"accuracy": np.full(3, np.nan)}
    records.write_part(nobody, tmp_path / "clients", 1)
    records.write_part(clients(2), tmp_path / "clients", 2)
    merged = pq.read_table(records.merge_parts(tmp_path / "clients", tmp_path / "clients.parquet"))
    assert merged["accuracy"].to_pylist() == [None, None, None, None, 0.5, 0.9]


def test_an_unfinished_part_is_not_merged(tmp_path):
    records.write_part(clients(1), tmp_path / "clients", 1)
    (tmp_path / "clients" / "round_000002.partial").write_bytes(b"half")
    merged = records.merge_parts(tmp_path / "clients", tmp_path / "clients.parquet")
    assert pq.read_table(merged).num_rows == 3
