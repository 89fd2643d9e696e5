"""Files of a table's rounds: a small one for each round, joined to larger ones while the run goes on."""

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysim.core.errors import reason_of
from raysim.core.json_text import json_in
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath
from raysim.simulation.column_types import check_types

SPAN = 32
"""Files that are joined to one: those of 32 rounds, then those of 32 x 32 rounds, and so on."""

GROUP_ROWS = 2**16
"""Rows from which a joined file begins a new row group; all rows of a round are in one."""

ROWS = "raysim.rows"
"""Key of a joined file's metadata: the numbers of rows of its rounds, in order, as JSON."""

RUN = "raysim.run"
"""Key of a part's metadata: the key of its run."""

SMALL, JOINED = re.compile(r"round_(\d+)\.parquet"), re.compile(r"rounds_(\d+)-(\d+)\.parquet")


class Part(NamedTuple):
    """A file that holds the rounds `first` to `last`."""

    first: int
    last: int
    file: StoragePath

    @property
    def num_rounds(self) -> int:
        """The number of its rounds."""
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """Its file, in the folder of the run."""
        return f"{self.file.parent.name}/{self.file.name}"


def path_of(folder: AnyPath, round: int) -> StoragePath:
    """Return the path of a round's part."""
    return storage_path(folder) / f"round_{round:06d}.parquet"


def joined_path_of(folder: AnyPath, first: int, last: int) -> StoragePath:
    """Return the path of the part that joins those of some rounds."""
    return storage_path(folder) / f"rounds_{first:06d}-{last:06d}.parquet"


def parts_in(folder: AnyPath) -> list[Part]:
    """Return the parts in a folder; other files are not parts."""
    parts = []
    for file in storage_path(folder).children():
        small, joined = SMALL.fullmatch(file.name), JOINED.fullmatch(file.name)
        if small:
            parts.append(Part(int(small[1]), int(small[1]), file))
        elif joined:
            parts.append(Part(int(joined[1]), int(joined[2]), file))
    return parts


def owners(parts: Iterable[Part]) -> dict[int, Part]:
    """Return the part from which each round is read, by round in ascending order.

    Where several hold a round it is the one of the fewest rounds: it is equal, since a run was killed while it joined
    parts, or newer, since a run was resumed from a round before.
    """
    owner: dict[int, Part] = {}
    for part in sorted(parts, key=lambda part: -part.num_rounds):
        owner |= dict.fromkeys(range(part.first, part.last + 1), part)
    return dict(sorted(owner.items()))


def read_round(folder: AnyPath, round: int, names: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a round, of the columns of some names.

    Raises:
        FileNotFoundError: If no part holds the round.
    """
    small = path_of(folder, round)
    for attempt in range(3):  # the run may be joining parts at this moment
        try:
            return _whole(small, names)
        except FileNotFoundError:
            owner = owners(parts_in(folder)).get(round)
            if owner is None or attempt == 2:
                raise
        try:
            return next(tables_of(owner, [round], names))
        except FileNotFoundError:
            continue
    raise FileNotFoundError(str(small))


def holds(folder: AnyPath, round: int) -> bool:
    """Whether a folder holds the rows of a round."""
    return path_of(folder, round).is_file() or round in owners(parts_in(folder))


def tables_of(part: Part, rounds: Iterable[int], names: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of some rounds of a part, in ascending order, with one row group in memory at a time."""
    if part.num_rounds == 1:
        yield _whole(part.file, names)
        return
    with pq.ParquetFile(part.file.path or io.BytesIO(part.file.read())) as file:
        ends = np.cumsum(_lengths_in(file, part.num_rounds))
        starts = np.concatenate([[0], ends[:-1]])
        group_starts = np.cumsum(
            [0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))]
        )
        group_of = np.searchsorted(group_starts, starts, side="right") - 1
        columns = names and list(names)
        read, table = -1, file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)
        for index in (round - part.first for round in rounds):
            length, group = int(ends[index] - starts[index]), int(group_of[index])
            if length and group != read:
                read, table = group, file.read_row_group(group, columns, use_threads=False)
            start = int(starts[index] - group_starts[group]) if length else 0
            yield table.slice(start, length).replace_schema_metadata()


def _lengths_in(file: pq.ParquetFile, num_rounds: int) -> list[int]:
    """Return the numbers of rows of a joined file's rounds."""
    lengths: Any = json_in(file.metadata.metadata[ROWS.encode()])
    are_numbers = isinstance(lengths, list) and all(type(each) is int and each >= 0 for each in lengths)
    if not are_numbers or len(lengths) != num_rounds or sum(lengths) != file.metadata.num_rows:
        raise ValueError(f"its rows are not those of {num_rounds} rounds")
    return list(lengths)


def tables_in(owner: Mapping[int, Part]) -> Iterator[pa.Table]:
    """Yield the rows of each round, from the parts that `owners` returns.

    Raises:
        ValueError: If a part is damaged; the message names its file.
    """
    for part, rounds in groupby(owner, owner.__getitem__):
        with _naming(part):
            yield from tables_of(part, rounds)


def schema_of(parts: Iterable[Part]) -> pa.Schema:
    """Return the columns of all parts, null where a part lacks one, and the key of their run as metadata.

    Raises:
        ValueError: If a part is damaged, has a column of another type than the parts before, or is not of their run;
            the message names its file.
    """
    merged, run, first = pa.schema([]), "", ""
    for part in parts:
        with _naming(part):
            schema = schema_in(part.file)
            check_types(schema)
            merged = unified([merged, schema])
        key = run_in(schema)
        if run and key and key != run:
            raise ValueError(f"{first} and {part.name} are of different runs")
        run, first = (run, first) if run or not key else (key, part.name)
    return merged.with_metadata({RUN: run} if run else None)


@contextmanager
def _naming(part: Part) -> Iterator[None]:
    """Name the file of a part in errors about its content; a file that is missing or cannot be read may be intact."""
    try:
        yield
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, FileNotFoundError)):
            raise
        raise ValueError(f"{part.name} is damaged: {reason_of(error)}") from None


def run_in(schema: pa.Schema) -> str:
    """Return the key of the run in a part's metadata; empty if there is none."""
    metadata: dict[bytes, bytes] = schema.metadata or {}
    return metadata.get(RUN.encode(), b"").decode()


def join(folder: AnyPath, round: int) -> StoragePath | None:
    """Join the parts of the last rounds to one file, where their number is due; each round stays readable.

    The file is complete before the parts are removed, so that the run may be killed at any time.

    Args:
        folder: Folder of the parts.
        round: The last round so far.

    Returns:
        The file; None: nothing is due, or a round is missing.
    """
    span = max((span for span in (SPAN, SPAN**2, SPAN**3) if round % span == 0), default=None)
    if span is None:
        return None
    first = round - span + 1
    inside = [part for part in parts_in(folder) if first <= part.first and part.last <= round]
    owner = owners(inside)
    if len(owner) < span:
        return None
    joined = joined_path_of(folder, first, round)
    schema = schema_of(dict.fromkeys(owner.values()))
    joined.write(lambda partial: _write_joined(tables_in(owner), schema, partial))
    for part in inside:
        if part.file != joined:
            part.file.remove()
    return joined


def _write_joined(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    lengths: list[int] = []
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            lengths.append(len(table))
            waiting.append(with_columns(table, schema))
            if sum(map(len, waiting)) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting), row_group_size=2**31 - 1)
                waiting = []
        if sum(map(len, waiting)):
            writer.write_table(pa.concat_tables(waiting), row_group_size=2**31 - 1)
        writer.add_key_value_metadata({ROWS: json.dumps(lengths)})


def schema_in(file: StoragePath) -> pa.Schema:
    """Return the columns and the metadata of a Parquet file; of a local one only the footer is read."""
    return pq.read_schema(file.path or io.BytesIO(file.read()))


def unified(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the columns of all tables; a column that a table lacks is null there."""
    return pa.unify_schemas([each.remove_metadata() for each in schemas], promote_options="default")


def with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema, null where it lacks one."""
    lacking = [field for field in schema if field.name not in table.column_names]
    for field in lacking:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def table_in(content: bytes, names: Sequence[str] | None = None) -> pa.Table:
    """Return the table in the content of a Parquet file, or columns of it."""
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    return file.read(names and list(names), use_threads=False)


def _whole(file: StoragePath, names: Sequence[str] | None = None) -> pa.Table:
    return table_in(file.read(), names)
