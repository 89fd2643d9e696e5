import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysim.core.errors import SettingError
from raysim.data.partition import partition
from raysim.data.rules import PartitionOptions

LABELS = np.arange(30) % 3
USERS = np.array([7] * 10 + [3] * 12 + [90] * 7 + [5])
PARTS = [[4, 1], [29], [0, 2, 3]]


def deal(name, num_clients=3, users=None, **options):
    return partition(LABELS, num_clients, name, PartitionOptions(**options), 0, users)


def listed(rows):
    return [rows[client].tolist() for client in range(len(rows))]


def written(path, parts):
    columns = {
        "client": np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        "row": np.concatenate(parts),
    }
    if path.suffix == ".json":
        path.write_text(json.dumps(parts))
    elif path.suffix == ".npz":
        np.savez(path, **{name: column.astype(np.int64) for name, column in columns.items()})
    else:
        pq.write_table(pa.table({name: column.astype(np.int64) for name, column in columns.items()}), path)
    return str(path)


@pytest.mark.parametrize("suffix", ["json", "npz", "parquet"])
def test_a_file_names_the_rows_of_each_client(tmp_path, suffix):
    rows = deal("file", path=written(tmp_path / f"rows.{suffix}", PARTS))
    assert listed(rows) == [[1, 4], [29], [0, 2, 3]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[1], [2]]", "population.clients=3 is not allowed with .* has 2 clients; allowed: 2"),
        ("[[1], [], [2]]", "client 1 has no row"),
        ("[[1], [30], [2]]", "no training row 30; allowed: 0 to 29"),
        ("[[1], [-1], [2]]", "no training row -1"),
        ("[[1], [3, 1], [2]]", "row 1 is given more than once"),
        ("[[1.5], [3], [2]]", "allowed: whole numbers"),
        ("[[1, [2]], [3], [2]]", "allowed: whole numbers"),
        ('{"0": [1]}', "a list with one list of rows per client"),
        ("[[1", "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_partition_is_refused(tmp_path, content, said):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(SettingError, match=said):
        deal("file", path=str(path))


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"cannot be read: .*No such file"):
        deal("file", path=str(tmp_path / "none.npz"))
    with pytest.raises(SettingError, match=r"allowed: \.json, \.npz or \.parquet"):
        deal("file", path="rows.csv")
    np.savez(tmp_path / "rows.npz", client=np.arange(3))
    with pytest.raises(SettingError, match="has no column 'row'"):
        deal("file", path=str(tmp_path / "rows.npz"))


def test_natural_users_are_clients_and_poor_users_are_left_out():
    assert listed(deal("natural", 3, USERS)) == [list(range(10, 22)), list(range(10)), list(range(22, 29))]
    assert sorted(len(part) for part in listed(deal("natural", 2, USERS))) in ([7, 10], [7, 12], [10, 12])
    assert len(deal("natural", 4, USERS, min_examples=1)) == 4
    with pytest.raises(SettingError, match=r"population\.clients=4 is too many for 3 users .*min_examples=2"):
        deal("natural", 4, USERS)


@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_users_may_come_from_a_file(tmp_path, suffix):
    path = tmp_path / f"users.{suffix}"
    if suffix == "npy":
        np.save(path, USERS)
    else:
        path.write_text(json.dumps(USERS.tolist()))
    assert listed(deal("natural", 3, path=str(path))) == listed(deal("natural", 3, USERS))
    path.unlink()
    np.save(tmp_path / "short.npy", USERS[:-1])
    with pytest.raises(SettingError, match="names 29 users; allowed: one for each of the 30 training rows"):
        deal("natural", 3, path=str(tmp_path / "short.npy"))


def test_a_data_set_without_users_has_no_natural_partition():
    with pytest.raises(
        SettingError, match=r"data\.partition\.name='natural' is not allowed: the data set has no users"
    ):
        deal("natural")
