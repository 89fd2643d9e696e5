"""Records of rounds, clients and channels as Parquet: a part per round, joined on the way, merged at the end."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysim.core.errors import reason_of
from raysim.core.log import warning
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.simulation.metrics import for_mlflow, metrics_of
from raysim.simulation.parts import (
    RUN,
    Part,
    join,
    owners,
    parts_in,
    path_of,
    run_in,
    schema_in,
    schema_of,
    table_in,
    tables_in,
    unified,
    with_columns,
)
from raysim.simulation.parts import read_round as table_of_round
from raysim.simulation.state import RoundReport, Totals

MEASURED = ("timestamp_ms", "wall_s", "driver_bytes", "clock/wall_s", "faults/retries")
"""Columns measured on the real machine; they differ between runs."""
TABLES = ("rounds", "clients", "channels")
"""The tables of a run; the parts of each are in a folder of its name."""


class TornRecordError(RuntimeError):
    """A part is incomplete or damaged."""


class Point(NamedTuple):
    """A point of a curve in MLflow, stamped with a time in milliseconds."""

    key: str
    value: float
    timestamp_ms: int
    step: int


@dataclass(frozen=True, slots=True)
class Logged:
    """The metrics of a round that MLflow gets, by name, with the time at which the round ended."""

    round: int
    timestamp_ms: int
    wall_s: float
    metrics: dict[str, float]

    @property
    def points(self) -> list[Point]:
        """Its metrics as points, with the round as step."""
        return [Point(key, value, self.timestamp_ms, self.round) for key, value in self.metrics.items()]


def write_part(clients: Columns, folder: AnyPath, round: int, run: str = "") -> StoragePath:
    """Write one round's part, with the key of its run; the file appears at once."""
    buffer, table = pa.BufferOutputStream(), _table(clients)
    table = table.replace_schema_metadata({RUN: run}) if run else table
    fast = {"use_dictionary": False, "write_statistics": False}  # half the time of either
    pq.write_table(table, buffer, write_page_checksum=True, **fast)
    return path_of(folder, round).write_bytes(buffer.getvalue().to_pybytes())


def write_parts(report: RoundReport, folder: AnyPath, run: str = "") -> None:
    """Write all records of a round to the run's folder, in parallel."""
    folder = storage_path(folder)
    parts = {"rounds": round_columns(report), "clients": report.clients, "channels": report.channels}
    with ThreadPoolExecutor(len(parts)) as pool:
        for part in [pool.submit(write_part, parts[name], folder / name, report.round, run) for name in TABLES]:
            part.result()


def join_parts(folder: AnyPath, round: int) -> None:
    """Join the parts of the last rounds where their number is due, so that a long run has few files.

    Where it cannot be done, the parts stay as they are, and a warning says so: no round is lost.
    """
    run = storage_path(folder)
    for table in TABLES:
        try:
            join(run / table, round)
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            warning(f"warning: the files of {run / table} are not joined: {reason_of(error)}")


def write_all(rounds: Sequence[Columns], target: AnyPath) -> StoragePath:
    """Write the tables of all rounds, in order, into one file, a row group per round."""
    tables = [_table(columns) for columns in rounds]
    schema = unified(table.schema for table in tables)
    return storage_path(target).write(lambda partial: _write_groups(tables, schema, partial))


def merge_parts(folder: AnyPath, target: AnyPath, together: bool = False, last: int | None = None) -> StoragePath:
    """Write the part files of all rounds, in order, into one file.

    Args:
        folder: Folder of the parts.
        target: The file.
        together: Whether all rounds form one row group, which holds them in memory together; else each forms one.
        last: The last round of the run; those beyond it are left out, and a warning names a file that holds one.
            None: not known.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If a part is damaged, or of another run; the message names its file.
    """
    for _ in range(3):  # the run may be joining parts at this moment
        try:
            owner = owners(parts_in(folder))
            if last is not None:
                owner = _without_strangers(owner, last)
            _check_complete(owner)
            schema = schema_of(dict.fromkeys(owner.values())).remove_metadata()
            tables = (with_columns(table, schema) for table in tables_in(owner))
            groups = [pa.concat_tables(tables)] if together else tables
            return storage_path(target).write(partial(_write_groups, groups, schema))
        except FileNotFoundError as error:
            missing = error
    raise missing


def _without_strangers(owner: Mapping[int, Part], last: int) -> dict[int, Part]:
    """Return the rounds of a run with the parts that hold them; files beyond its last one are no records of it."""
    beyond = [part.name for round, part in owner.items() if round > last]
    if beyond:
        warning(f"warning: {beyond[0]} is left out: the last round is {last}")
    return {round: part for round, part in owner.items() if round <= last}


def _check_complete(owner: Mapping[int, Part]) -> None:
    """Raise FileNotFoundError if a round is missing before one that is there."""
    for expected, (round, part) in enumerate(owner.items(), start=1):
        if round != expected:
            missing = path_of(part.file.parent, expected)
            raise FileNotFoundError(f"{missing.parent.name}/{missing.name} is missing, and {part.name} is there")


def merge_all(folder: AnyPath, last: int | None = None) -> None:
    """Merge the records of a run's rounds, and those of their clients and channels, into one table each.

    A run of a version that did not count channels has no records of them.

    Args:
        folder: The folder of the run.
        last: The last round of the run; None: not known.
    """
    run = storage_path(folder)
    for table in TABLES:
        if table != "channels" or (run / table).children():
            merge_parts(run / table, run / f"{table}.parquet", together=table == "rounds", last=last)


def _write_groups(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(with_columns(table, schema))


def read(path: AnyPath, names: Sequence[str] | None = None) -> Columns:
    """Read a table written by this module, or columns of it; missing numbers are NaN, text has a fixed width."""
    return _columns(table_in(storage_path(path).read(), names))


def read_round(folder: AnyPath, round: int, names: Sequence[str] | None = None) -> Columns:
    """Read the records of a round from the parts in a folder, as `read` does.

    Raises:
        FileNotFoundError: If no part holds the round.
    """
    return _columns(table_of_round(folder, round, names))


def _columns(table: pa.Table) -> Columns:
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return {name: column.astype(np.str_) if column.dtype == object else column for name, column in columns.items()}


def runs_of(folder: AnyPath, last: int) -> dict[str, str]:
    """Return the keys of the runs whose rounds up to the last one some parts hold, by file; empty: not known."""
    owner = owners(parts_in(folder))
    parts = dict.fromkeys(part for round, part in owner.items() if round <= last)
    return {part.name: run_in(schema_in(part.file)) for part in parts}


def round_columns(report: RoundReport) -> Columns:
    """Return the record of a round as a table of one row: totals so far, and all metrics."""
    totals, score = report.totals, report.score
    row = {
        "round": report.round,
        "timestamp_ms": report.timestamp_ms,
        "wall_s": report.wall_s,
        "driver_bytes": report.driver_bytes,
        "round_s": report.round_s,
        "simulated_s": totals.simulated_s,
        "bytes": totals.down_bytes + totals.up_bytes,
        "train_flops": totals.train_flops,
        "energy_j": totals.energy_j,
        "train_loss": report.train_loss,
        report.primary.name: nan if score is None else score.primary,
        "loss": nan if score is None else score.loss,
        **_validation_of(report),
        **_fedavg_columns(totals),
        **metrics_of(report),
    }
    return {name: np.array([value]) for name, value in row.items()}


def _validation_of(report: RoundReport) -> dict[str, float]:
    if report.validation is None:
        return {}
    return {f"validation_{report.primary.name}": report.validation.primary, "validation_loss": report.validation.loss}


def _fedavg_columns(totals: Totals) -> dict[str, float]:
    """Return what FedAvg would have spent by then; nothing where that is not known."""
    dense = totals.fedavg
    if dense is None:
        return {}
    names = ("bytes", "train_flops", "simulated_s", "energy_j", "client_rounds")
    return {f"fedavg_{name}": getattr(dense, name) for name in names}


def logged(folder: AnyPath, round: int, without: frozenset[str] = frozenset()) -> Logged:
    """Return the metrics of a round that MLflow gets, from its part in the records.

    Args:
        folder: Folder of the parts.
        round: Counted from 1.
        without: Metrics that MLflow does not get.

    Raises:
        OSError: If the part is missing or cannot be read.
        TornRecordError: If it is damaged.
    """
    part = path_of(folder, round)
    try:
        table = table_of_round(folder, round)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:  # Arrow raises either for a damaged file
        if isinstance(error, OSError) and error.errno is not None:  # not Arrow's: the file cannot be read
            raise
        raise TornRecordError(f"{part} is damaged: {reason_of(error)}") from None
    try:
        (row,) = table.to_pylist()
        found = {name: nan if value is None else float(value) for name, value in row.items() if "/" in name}
        return Logged(round, int(row["timestamp_ms"]), float(row["wall_s"]), for_mlflow(found, without))
    except (KeyError, TypeError, ValueError) as error:
        raise TornRecordError(f"{part} is damaged: {type(error).__name__}: {reason_of(error)}") from None


def _table(columns: Columns) -> pa.Table:
    return pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()})
