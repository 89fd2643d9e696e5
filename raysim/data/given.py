"""Rules that read a partition instead of drawing it: natural users, and a file of row numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.errors import SettingError, refusing, shortened
from raysim.core.json_text import json_in
from raysim.core.storage import user_files
from raysim.data.rules import RowPool, Rows


def natural(pool: RowPool) -> list[Rows]:
    """Let every client be one natural user: a writer, an author, a device.

    Users with fewer than `min_examples` rows are left out. If more users remain than there are clients, some are
    drawn, and the rows of the others are left over. The users are the data set's own, or `path` names a file with
    the user of each training row (`.npy`, or a list in `.json`).

    Source: Caldas et al., arXiv 1812.01097 (LEAF).
    """
    users = pool.users if pool.options.path is None else _users_of(pool, pool.options.path)
    if users is None:
        raise SettingError(
            "data.partition.name='natural' is not allowed: the data set has no users; allowed: another name, or "
            "data.partition.path with the user of each training row"
        )
    order = np.argsort(users, kind="stable")
    by_user = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
    rich = [rows for rows in by_user if len(rows) >= pool.min_examples]
    if len(rich) < pool.num_clients:
        raise SettingError(
            f"population.clients={pool.num_clients} is too many for {len(rich)} users with "
            f"data.partition.min_examples={pool.min_examples} or more rows; allowed: 1 to {len(rich)}"
        )
    chosen = np.sort(pool.rng.choice(len(rich), pool.num_clients, replace=False))
    return [rich[user] for user in chosen]


def from_file(pool: RowPool) -> list[Rows]:
    """Give every client the training rows that a file names; rows that it does not name are left over.

    Rows that validate (`data.validation_share`) are taken from the clients for which the file names them. The file
    is a list with one list of row numbers per client (`.json`), or holds the equally long columns `client` and `row`
    (`.npz`, `.parquet`). Clients and rows are numbered from 0.
    """
    path = str(pool.options.path)
    parts = _parts_in(path, len(pool.labels))
    if len(parts) != pool.num_clients:
        raise SettingError(
            f"population.clients={pool.num_clients} is not allowed with data.partition.path={path!r}, which has "
            f"{len(parts)} clients; allowed: {len(parts)}"
        )
    for client, part in enumerate(parts):
        if not len(part):
            raise SettingError(f"data.partition.path={path!r}: client {client} has no row; every client needs one")
    rows = np.concatenate(parts)
    if rows.min() < 0 or rows.max() >= pool.size_of_data:
        wrong = rows[(rows < 0) | (rows >= pool.size_of_data)][0]
        raise SettingError(
            f"data.partition.path={path!r}: there is no training row {wrong}; allowed: 0 to {pool.size_of_data - 1}"
        )
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise SettingError(
            f"data.partition.path={path!r}: row {values[counts > 1][0]} is given more than once; allowed: once"
        )
    return parts if pool.numbers is None else _in_pool(parts, pool.numbers, path)


def _in_pool(parts: Sequence[Rows], numbers: Rows, path: str) -> list[Rows]:
    """Return the rows of each client that are in the pool, numbered as there."""
    found = [np.searchsorted(numbers, part[np.isin(part, numbers)]) for part in parts]
    for client, part in enumerate(found):
        if not len(part):
            raise SettingError(
                f"data.partition.path={path!r}: all rows of client {client} validate; allowed: a smaller "
                "data.validation_share, another data.split_seed, or more rows for the client"
            )
    return found


def _users_of(pool: RowPool, path: str) -> Rows:
    users = _users_in(path, pool.size_of_data)
    return users if pool.numbers is None else users[pool.numbers]


def _users_in(path: str, num_rows: int) -> Rows:
    if Path(path).suffix not in (".npy", ".json"):
        raise SettingError(f"data.partition.path={path!r} is not allowed with name='natural'; allowed: .npy, .json")
    users = _whole(path, _read(path, num_rows))
    if len(users) != num_rows:
        raise SettingError(
            f"data.partition.path={path!r} names {len(users)} users; allowed: one for each of the {num_rows} "
            "training rows"
        )
    return users


def _parts_in(path: str, num_rows: int) -> list[Rows]:
    suffix = Path(path).suffix
    if suffix not in (".json", ".npz", ".parquet"):
        raise SettingError(f"data.partition.path={path!r} is not allowed; allowed: .json, .npz or .parquet")
    content = _read(path, num_rows)
    if suffix == ".json":
        if not isinstance(content, list) or not all(isinstance(part, list) for part in content):
            raise SettingError(
                f"data.partition.path={path!r} is not allowed; allowed: a list with one list of rows per client"
            )
        return [_whole(path, part) for part in content]
    if missing := [name for name in ("client", "row") if name not in content]:
        raise SettingError(f"data.partition.path={path!r} has no column {missing[0]!r}; it needs client and row")
    clients, rows = (_whole(path, content[name]) for name in ("client", "row"))
    if len(clients) != len(rows) or (len(clients) and not 0 <= clients.min() <= clients.max() < len(rows)):
        raise SettingError(
            f"data.partition.path={path!r}: columns client and row are not allowed; allowed: columns of equal "
            "length, clients numbered from 0 without a gap"
        )
    order = np.argsort(clients, kind="stable")
    return np.split(rows[order], np.cumsum(np.bincount(clients))[:-1])


LONGEST_ROW = 40
"""Characters of a row number in a file, with spaces around it."""


def _read(path: str, num_rows: int) -> Any:
    """Return the content of a file that names each of some rows at most once."""
    setting = f"data.partition.path={shortened(path)}"
    if path.endswith(".parquet"):
        table = user_files.read_parquet(setting, path, num_rows, ("client", "row"), others=True)
        return {name: table[name].to_numpy() for name in table.column_names}
    if path.endswith(".npz"):
        user_files.check_zip(setting, path, 16 * num_rows + 10_000)
    user_files.check_file(setting, path, LONGEST_ROW * num_rows + 1_000_000)
    with refusing(f"{setting} cannot be read"):
        if path.endswith(".json"):
            return json_in(Path(path).read_text(encoding="utf-8"))
        content = np.load(path, allow_pickle=False)
        return dict(content) if path.endswith(".npz") else content


def _whole(path: str, values: Sequence[Any]) -> Rows:
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        array = np.empty((0, 0))
    if array.ndim == 1 and not len(array):
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or array.max() > np.iinfo(np.int64).max:
        raise SettingError(f"data.partition.path={path!r} holds {array.dtype} {array.shape}; allowed: whole numbers")
    return array.astype(np.int64)
