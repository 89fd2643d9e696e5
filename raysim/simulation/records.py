"""Records of rounds, clients and channels as Parquet: one part file per round, merged at the end."""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysim.core.errors import reason_of
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.simulation.metrics import for_mlflow, metrics_of
from raysim.simulation.state import RoundReport

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


def path_of(folder: AnyPath, round: int) -> StoragePath:
    """Return the path of a round's part."""
    return storage_path(folder) / f"round_{round:06d}.parquet"


def write_part(clients: Columns, folder: AnyPath, round: int) -> StoragePath:
    """Write one round's part; the file appears at once."""
    buffer = pa.BufferOutputStream()
    pq.write_table(_table(clients), buffer, use_dictionary=False, write_statistics=False)  # half the time of either
    return path_of(folder, round).write_bytes(buffer.getvalue().to_pybytes())


def write_parts(report: RoundReport, folder: AnyPath) -> None:
    """Write all records of a round to the run's folder, in parallel."""
    folder = storage_path(folder)
    parts = {"rounds": round_columns(report), "clients": report.clients, "channels": report.channels}
    with ThreadPoolExecutor(len(parts)) as pool:
        for part in [pool.submit(write_part, parts[name], folder / name, report.round) for name in TABLES]:
            part.result()


def write_all(rounds: Sequence[Columns], target: AnyPath) -> StoragePath:
    """Write the tables of all rounds, in order, into one file, a row group per round."""
    tables = [_table(columns) for columns in rounds]
    schema = _schema_of([table.schema for table in tables])
    return storage_path(target).write(lambda partial: _write_groups(tables, schema, partial))


def merge_parts(folder: AnyPath, target: AnyPath, together: bool = False) -> StoragePath:
    """Write all rounds' part files, in order, into one file.

    Args:
        folder: Folder of the parts.
        target: The file.
        together: Whether all rounds form one row group, which holds them in memory together; else each forms one.
    """
    parts = [part for part in storage_path(folder).children() if part.name.endswith(".parquet")]
    schema = _schema_of([pq.read_schema(part.path or io.BytesIO(part.read())) for part in parts])
    tables = (_with_all(_read(part), schema) for part in parts)
    groups = [pa.concat_tables(tables)] if together else tables
    return storage_path(target).write(lambda partial: _write_groups(groups, schema, partial))


def merge_all(folder: AnyPath) -> None:
    """Merge the records of a run's rounds, and those of their clients and channels, into one table each.

    A run of a version that did not count channels has no records of them.
    """
    run = storage_path(folder)
    for table in TABLES:
        if table != "channels" or (run / table).children():
            merge_parts(run / table, run / f"{table}.parquet", together=table == "rounds")


def _schema_of(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns of all tables; a column that a table lacks is null there."""
    return pa.unify_schemas(schemas, promote_options="default")


def _write_groups(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(_with_all(table, schema))


def _with_all(table: pa.Table, schema: pa.Schema) -> pa.Table:
    lacking = [field for field in schema if field.name not in table.column_names]
    for field in lacking:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def read(path: AnyPath, names: Sequence[str] | None = None) -> Columns:
    """Read a table written by this module, or columns of it; missing numbers are NaN, text has a fixed width."""
    table = _table_in(storage_path(path).read(), names)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return {name: column.astype(np.str_) if column.dtype == object else column for name, column in columns.items()}


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
        "accuracy": nan if score is None else score.accuracy,
        "loss": nan if score is None else score.loss,
        **metrics_of(report),
    }
    return {name: np.array([value]) for name, value in row.items()}


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
    content = part.read()
    try:
        table = _table_in(content)
    except (pa.ArrowException, OSError) as error:  # Arrow raises either for a damaged file
        raise TornRecordError(f"{part} is damaged: {reason_of(error)}") from None
    row: dict[str, Any] = table.to_pylist()[0]
    found = {name: nan if value is None else value for name, value in row.items() if "/" in name}
    return Logged(round, row["timestamp_ms"], row["wall_s"], for_mlflow(found, without))


def _read(part: StoragePath) -> pa.Table:
    return _table_in(part.read())


def _table_in(content: bytes, names: Sequence[str] | None = None) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(content)).read(names and list(names), use_threads=False)


def _table(columns: Columns) -> pa.Table:
    return pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()})
