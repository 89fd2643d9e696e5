"""Every round and every client of it as Parquet: one part file per round, merged at the end."""

from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysim.files import write_atomically
from raysim.types import Columns, RoundReport


def write_part(clients: Columns, folder: Path, round: int) -> Path:
    """Write one round's clients; the file appears at once."""
    folder.mkdir(parents=True, exist_ok=True)
    table = _table(clients)
    return write_atomically(folder / f"round_{round:06d}.parquet", lambda partial: pq.write_table(table, partial))


def write_all(rounds: Sequence[Columns], target: Path) -> Path:
    """Write the clients of all rounds, in order, into one file, a row group per round."""

    def write(partial: Path) -> None:
        tables = [_table(clients) for clients in rounds]
        with pq.ParquetWriter(partial, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)

    return write_atomically(target, write)


def merge_parts(folder: Path, target: Path) -> Path:
    """Write all rounds' part files, in order, into one file, a row group per round."""
    parts = sorted(folder.glob("round_*.parquet"))

    def write(partial: Path) -> None:
        with pq.ParquetWriter(partial, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))

    return write_atomically(target, write)


def read(path: Path) -> Columns:
    """Read a table written by this module; missing numbers are NaN, text has a fixed width."""
    table = pq.read_table(path)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return {name: column.astype(np.str_) if column.dtype == object else column for name, column in columns.items()}


def round_columns(report: RoundReport) -> Columns:
    """Return what a round took, spent and reached so far, as a table of one row."""
    totals, score = report.totals, report.score
    row = {
        "round": report.round,
        "round_s": report.round_s,
        "simulated_s": totals.simulated_s,
        "bytes": totals.down_bytes + totals.up_bytes,
        "train_flops": totals.train_flops,
        "energy_j": totals.energy_j,
        "train_loss": report.train_loss,
        "accuracy": nan if score is None else score.accuracy,
        "loss": nan if score is None else score.loss,
    }
    return {name: np.array([value]) for name, value in row.items()}


def _table(clients: Columns) -> pa.Table:
    return pa.table({name: pa.array(column, from_pandas=True) for name, column in clients.items()})
