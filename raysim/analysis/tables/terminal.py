"""Print tables on the terminal, in as many parts as its width takes."""

import itertools
from collections.abc import Sequence

from rich import box
from rich.table import Table

from raysim.analysis.tables.columns import Column
from raysim.core.formatting import output


def show(title: str, columns: Sequence[Column], dim: Sequence[bool], notes: Sequence[str]) -> None:
    """Print a table and its notes; see `rich_tables`."""
    console = output()
    console.print(title, style="bold")
    for table in rich_tables(columns, dim, console.width):
        console.print(table)
    for note in notes:
        console.print(note)


def rich_tables(columns: Sequence[Column], dim: Sequence[bool], width: int) -> list[Table]:
    """Return a table in as many parts as it takes to fit a width, each with the names of the rows.

    Args:
        columns: The first one has the names of the rows.
        dim: Which rows are printed dim, since their runs did not finish.
        width: The width of the terminal, in characters.
    """
    names, *others = columns
    parts: list[list[Column]] = [[names]]
    for block in _blocks(others):
        wider = [*parts[-1], *block]
        if len(parts[-1]) > 1 and _width_of(_table(wider, dim)) > width:
            parts.append([names])
        for column in block:  # a block stays together if it is narrow enough
            if len(parts[-1]) > 1 and _width_of(_table([*parts[-1], column], dim)) > width:
                parts.append([names])
            parts[-1].append(column)
    return [_table(part, dim) for part in parts]


def _blocks(columns: Sequence[Column]) -> list[list[Column]]:
    """Return columns in groups that share the first line of their heading."""
    groups = itertools.groupby(enumerate(columns), lambda found: found[1].upper or found[0])
    return [[column for _, column in group] for _, group in groups]


def _width_of(table: Table) -> int:
    return output(width=10_000).measure(table).maximum


def _table(columns: Sequence[Column], dim: Sequence[bool]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    before = ""
    for column in columns:
        upper = "" if column.upper == before and column.upper else column.upper
        before = column.upper
        wraps = column.is_text and column.wraps
        table.add_column(f"{upper}\n{column.lower}", justify="left" if column.is_text else "right", no_wrap=not wraps)
    for cells, is_dim in zip(zip(*(column.cells for column in columns), strict=True), dim, strict=True):
        table.add_row(*cells, style="dim" if is_dim else None)
    return table
