"""Read a table, CSV or Parquet: a row is an example, columns are its inputs, its target and perhaps its user."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, refusing
from raysim.core.storage import user_files
from raysim.data import options
from raysim.data.columns import Column, classes_of, column, inputs_of
from raysim.data.files import regular
from raysim.data.raw import RawData, Source, check_task, from_arrays
from raysim.data.stratified import rows_to_test

SUFFIXES = (".csv", ".parquet")
ALLOWED = "allowed: a .csv or .parquet file, or a folder with train.* and test.* of these"
LARGEST_BLOCK = 2**31 - 1
INDEX = "__index_level_"
"""Begins the names of the columns in which pandas keeps the numbers of rows in Parquet."""


def table(
    source: Source,
    target: str | list[str] | None = None,
    user: str | None = None,
    drop: str | list[str] | None = None,
    test_share: float | None = None,
    delimiter: str = ",",
) -> RawData:
    """Return the rows of a table: `data.root` is a file, or a folder with `train.*` and `test.*`.

    All columns but those of `target`, `user` and `drop` are inputs, encoded as `raysim.data.columns.inputs_of` does:
    by the training rows. Regression keeps targets as they are; classes are numbered in the order of their values.

    Args:
        source: Names the file or folder.
        target: The column of the target; several of 0 and 1 for `multilabel`, several numbers for `regression`.
        user: The column of the natural user, which is no input.
        drop: Columns that are left out.
        test_share: Share of the rows of one file that is tested, drawn by the seed of the split, class by class;
            None: 0.2.
        delimiter: Character between the values of CSV.

    Raises:
        SettingError: If a file cannot be read, an option does not fit, or a target is missing.
    """
    if source.download:
        raise SettingError("data.download=true has no effect with data.name='table'; allowed: false")
    check_task(source, "classification", "multilabel", "regression")
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise SettingError(f"data.options.delimiter={delimiter!r} is not allowed; allowed: one character")
    targets, dropped = options.columns("target", target), options.columns("drop", drop)
    users = options.columns("user", options.one_column("user", user))
    options.refuse_shared({"target": targets, "user": users, "drop": dropped})
    paths = _files(source)
    if len(paths) == 2 and test_share is not None:
        raise SettingError(
            f"data.options.test_share={test_share!r} has no effect: data.root={source.root!r} has test rows; "
            "allowed: null"
        )
    share = options.DEFAULT_TEST_SHARE if test_share is None else test_share
    options.check_share(share)
    read = [_read(path, dropped, delimiter) for path in paths]
    parts = [each for each, _ in read]
    options.refuse_unknown("drop", dropped, {name for _, names in read for name in names})
    options.required("target", targets, parts[0].column_names)
    options.refuse_unknown("user", users, parts[0].column_names)
    sizes = [part.num_rows for part in parts]
    columns = _columns(source, parts)
    return _raw(source, columns, sizes, targets, user, share)


def _raw(
    source: Source,
    columns: Mapping[str, Column],
    sizes: Sequence[int],
    targets: tuple[str, ...],
    user: str | None,
    test_share: float,
) -> RawData:
    inputs = {name: each for name, each in columns.items() if name not in (*targets, user)}
    if not inputs:
        raise SettingError(
            f"data.root={source.root!r} has no column of inputs; allowed: one or more beside the target"
        )
    target, names = _targets(source, {name: columns[name] for name in targets})
    if len(sizes) == 2:
        train, test = np.arange(sizes[0]), np.arange(sizes[0], sum(sizes))
    else:
        labels = target if source.task == "classification" else np.zeros(sizes[0], np.int64)
        if len(labels) < 2:
            raise SettingError(f"data.root={source.root!r} has {len(labels)} rows; allowed: two or more")
        test = rows_to_test(labels, test_share, source.seed, f"data.options.target={targets[0]!r}", names)
        train = np.setdiff1d(np.arange(sizes[0]), test)
    matrix = inputs_of(f"data.root={source.root!r}", inputs, train)
    arrays = [matrix[train], target[train], matrix[test], target[test]]
    if user is not None:
        arrays.append(_users(user, columns[user], train))
    return replace(from_arrays(source.name, arrays, source.task), class_names=names)


def _users(name: str, given: Column, train: NDArray[np.int64]) -> NDArray[np.int64]:
    if given.is_missing[train].any():
        raise SettingError(f"data.options.user={name!r} has training rows without a value; allowed: a user for each")
    return np.unique(given.values[train], return_inverse=True)[1]


def _targets(source: Source, targets: Mapping[str, Column]) -> tuple[NDArray[Any], tuple[str, ...]]:
    for name, each in targets.items():
        if missing := int(each.is_missing.sum()):
            raise SettingError(
                f"data.options.target={name!r} has {missing} rows without a value; allowed: a value in each row"
            )
        if source.task != "classification" and each.kind == "texts":
            raise SettingError(
                f"data.options.target={name!r} holds texts; allowed with task.name={source.task!r}: numbers"
            )
    if source.task != "classification":
        return np.stack([each.values for each in targets.values()], axis=1), ()
    if len(targets) > 1:
        raise SettingError(
            f"data.options.target={[*targets]!r} is not allowed with task.name='classification'; allowed: one column"
        )
    name, only = next(iter(targets.items()))
    return classes_of(f"data.options.target={name!r}", only)


def _files(source: Source) -> list[Path]:
    if source.root is None:
        raise SettingError(f"data.root=null is not allowed with data.name='table'; {ALLOWED}")
    root, setting = Path(source.root), f"data.root={source.root!r}"
    with refusing(f"{setting} cannot be read"):
        if not root.is_dir():
            found = [root]
        else:
            found = [path for path in sorted(root.iterdir()) if path.stem in ("train", "test")]
            found = sorted((path for path in found if path.suffix in SUFFIXES), key=lambda path: path.stem != "train")
    if root.is_dir() and [path.stem for path in found] != ["train", "test"]:
        raise SettingError(f"{setting} holds {[path.name for path in found]!r}; {ALLOWED}, one each")
    for path in found:
        regular(path, setting)
        if path.suffix not in SUFFIXES:
            raise SettingError(f"{setting} is no table; {ALLOWED}")
    return found


def _read(path: Path, dropped: Sequence[str], delimiter: str) -> tuple[Any, list[str]]:
    """Return a file's columns without those that are left out, as `pyarrow.Table`, and the names of all.

    Raises:
        SettingError: If it cannot be read, or names of columns are not there or not different.
    """
    setting = f"data.root={str(path)!r}"
    if path.suffix == ".csv":
        found = _read_csv(setting, path, delimiter)
        names = found.column_names
    else:
        names = [name for name in user_files.parquet_names(setting, str(path)) if not name.startswith(INDEX)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingError(f"{setting} has the column {twice!r} more than once; allowed: columns of different names")
    kept = [name for name in names if name not in dropped]
    if "" in kept:
        raise SettingError(
            f"{setting} has a column without a name, perhaps the numbers of its rows; allowed: names, or "
            "data.options.drop: ['']"
        )
    if path.suffix == ".csv":
        return found.select(kept), names
    most_rows = memory.total_bytes() // (8 * max(1, len(kept)))
    return user_files.read_parquet(setting, str(path), most_rows, tuple(kept), others=True), names


def _read_csv(setting: str, path: Path, delimiter: str) -> Any:
    from pyarrow import csv

    user_files.check_file(setting, str(path))
    # Types are found from the first block, so the file is one.
    whole = csv.ReadOptions(block_size=min(max(path.stat().st_size + 1, 2**20), LARGEST_BLOCK))
    with refusing(f"{setting} cannot be read as .csv"):
        return csv.read_csv(path, read_options=whole, parse_options=csv.ParseOptions(delimiter=delimiter))


def _columns(source: Source, parts: Sequence[Any]) -> dict[str, Column]:
    setting, names = f"data.root={source.root!r}", parts[0].column_names
    for other in parts[1:]:
        differing = sorted({*names} ^ {*other.column_names})
        if differing:
            raise SettingError(
                f"{setting}: one of train and test lacks the columns {differing!r}; allowed: the same columns, or to "
                "name them in data.options.drop"
            )
    if any(not part.num_rows for part in parts):
        raise SettingError(f"{setting} has a table without rows; allowed: rows to train on and rows to test")
    return {name: column(setting, name, [part[name] for part in parts]) for name in names}
