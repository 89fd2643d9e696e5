"""The table of compared runs as a person reads it: headings, cells, and Rich tables that fit a terminal."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from raysim.analysis.comparison import rows
from raysim.analysis.comparison.reached import ACCURACIES, SPENT
from raysim.analysis.study import text_tables
from raysim.analysis.study.one_run import LAST
from raysim.core.formatting import output

UNITS = {"megabytes": "MB", "simulated_s": "s", "energy_j": "J"}
"""Of what accuracy is weighed against."""
NAMES = {"megabytes": "bytes moved", "simulated_s": "simulated time", "energy_j": "devices"}
"""Above the units."""
TEXT = ("row", "on front", "settings", "state")
"""Columns that hold text."""
STAR = "*"
"""Marks what is held against the baseline with some of a row's seeds alone."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: what stands above it in two lines, and its cells."""

    upper: str
    lower: str
    cells: list[str]

    @property
    def heading(self) -> str:
        """Both lines in one."""
        return f"{self.upper} {self.lower}".strip()

    @property
    def is_of_target(self) -> bool:
        """Whether it tells what a target cost."""
        return self.upper.startswith("to ")

    @property
    def is_text(self) -> bool:
        """Whether it holds text, and no numbers."""
        return self.lower in TEXT


def columns_of(table: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the table's columns; those that would be empty are left out.

    Args:
        table: Figures of each row, as of `reached.table_of`.
    """
    found = [
        Column("", "row", [row["label"] for row in table]),
        Column("", "seeds", [_seeds(row) for row in table]),
        *(
            Column("accuracy %", lower, [accuracy(row[name]) for row in table])
            for name, lower in zip(ACCURACIES, (f"last {LAST}", "final", "best"), strict=True)
        ),
        Column("points", "to baseline", [_points(row) for row in table]),
        Column("pruned", "%", [_percent(row["pruning_ratio"]) for row in table]),
        *(
            Column(NAMES[name], UNITS[name], [_cost(row[name], row["is_whole"]) for row in table])
            for name in _charged(table)
        ),
    ]
    for place, target in enumerate(table[0]["targets"]):
        told = [row["targets"][place] for row in table]
        upper = f"to {100 * target['accuracy']:g} %"
        found.append(Column(upper, "rounds", [_rounds(each) for each in told]))
        found += [
            Column(upper, UNITS[name], [_cost(each[name], is_whole=True) for each in told])
            for name in _charged(table)
        ]
    found += [
        Column("", "on front", [" ".join(UNITS[name] for name in row["fronts"]) for row in table]),
        Column("other", "settings", [rows.shortly(row["other_settings"]) for row in table]),
        Column("", "state", [_state(row) for row in table]),
    ]
    return [column for column in found if any(cell not in ("", "-") for cell in column.cells)]


def _charged(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the costs that some row has."""
    return [name for name in SPENT if any(row[name]["mean"] is not None for row in table)]


def _seeds(row: Mapping[str, Any]) -> str:
    total = len(row["seeds"])
    return f"{row['counted']} of {total}" if row["counted"] < total else str(total)


def accuracy(value: Mapping[str, float | None]) -> str:
    """Write mean and deviation of an accuracy in per cent."""
    if value["mean"] is None:
        return "-"
    deviation = "" if value["std"] is None else f" \u00b1 {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{deviation}"


def _points(row: Mapping[str, Any]) -> str:
    return "-" if row["points"] is None else f"{row['points']:+.1f}{_star(row['points_are_all'])}"


def _star(is_all: bool) -> str:
    return "" if is_all else STAR


def _percent(value: Mapping[str, float | None]) -> str:
    return "-" if value["mean"] is None else f"{100 * value['mean']:.1f}"


def _cost(value: Mapping[str, Any], is_whole: bool) -> str:
    """Write a cost, and its share of the baseline's; what fell short of its rounds has spent less for no merit."""
    if value["mean"] is None:
        return "-"
    is_held = value["percent"] is not None and is_whole
    against = f" ({value['percent']:.0f} %{_star(value['is_all'])})" if is_held else ""
    return f"{number(value['mean'])}{against}"


def number(value: float) -> str:
    """Return a number with three digits at least, and no more after the point than that takes.

    >>> [number(value) for value in (1234.5, 12.345, 0.01234, 0.0)]
    ['1,234', '12.3', '0.0123', '0']
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rounds(target: Mapping[str, Any]) -> str:
    if not target["reached"]:
        return f"not reached (0 of {target['of']})"
    mean, deviation = target["rounds"]["mean"], target["rounds"]["std"]
    told = f"{mean:.3g}" + (f" \u00b1 {deviation:.1f}" if deviation else "")
    return told if target["reached"] == target["of"] else f"{told} ({target['reached']} of {target['of']})"


def _state(row: Mapping[str, Any]) -> str:
    if row["is_whole"]:
        return ""
    done = row["rounds"]["mean"]
    return f"{' and '.join(sorted(set(row['states'])))}, " + (f"{done:.3g} rounds" if done else "no round")


def notes_below(baseline: str, notes: Sequence[str], columns: Sequence[Column]) -> list[str]:
    """Return how the table is read, and what stands in the way of comparing.

    Args:
        baseline: Label of the row that others are held against.
        notes: What stands in the way.
        columns: The table as text.
    """
    is_starred = any(STAR in cell for column in columns if not column.is_text for cell in column.cells)
    star = f" {STAR} Of those seeds alone that both rows have (and that reached the target)." * is_starred
    front = " On front: no row is as accurate for fewer MB, simulated s or J." * any(
        column.lower == "on front" for column in columns
    )
    how = (
        f"Test accuracy: mean \u00b1 sample standard deviation over seeds, of the mean of the last {LAST} "
        f"evaluations, of the last and of the best one. In brackets: per cent of {baseline}, seed by seed.{star} "
        f"What a target cost is the mean of the runs that reached it.{front}"
    )
    return [how, *notes]


def show(title: str, columns: Sequence[Column], dim: Sequence[bool], notes: Sequence[str]) -> None:
    """Print a table and its notes to the terminal; see `rich_tables`."""
    console = output()
    console.print(title, style="bold")
    for table in rich_tables(columns, dim, console.width):
        console.print(table)
    for note in notes:
        console.print(note)


def rich_tables(columns: Sequence[Column], dim: Sequence[bool], width: int) -> list[Table]:
    """Return the table in as many parts as it takes to fit a width, each with the names of the rows.

    Args:
        columns: As of `columns_of`.
        dim: Whether a row stands back: its runs fell short.
        width: Of the terminal, in characters.
    """
    names, *left = columns
    parts: list[list[Column]] = [[names]]
    for block in _blocks(left):
        wider = [*parts[-1], *block]
        if len(parts[-1]) > 1 and _needed(_part(wider, dim)) > width:
            parts.append([names])
        for column in block:  # together if that is narrow enough
            if len(parts[-1]) > 1 and _needed(_part([*parts[-1], column], dim)) > width:
                parts.append([names])
            parts[-1].append(column)
    return [_part(part, dim) for part in parts]


def _blocks(columns: Sequence[Column]) -> list[list[Column]]:
    """Return columns in groups that belong together, those below one heading."""
    groups = itertools.groupby(enumerate(columns), lambda found: found[1].upper or found[0])
    return [[column for _, column in group] for _, group in groups]


def _needed(table: Table) -> int:
    return output(width=10_000).measure(table).maximum


def _part(columns: Sequence[Column], dim: Sequence[bool]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    shown = ""
    for column in columns:
        upper = "" if column.upper == shown and column.upper else column.upper
        shown = column.upper
        wraps = column.is_text and column.lower != "on front"
        table.add_column(
            f"{upper}\n{column.lower}", justify="left" if column.is_text else "right", no_wrap=not wraps,
        )  # fmt: skip
    for place, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        table.add_row(*cells, style="dim" if dim[place] else None)
    return table


def to_markdown(columns: Sequence[Column], title: str, notes: Sequence[str]) -> str:
    """Return the table as Markdown, notes below it."""
    table = text_tables.markdown(*_cells(columns))
    return "\n".join([f"# {title}", "", table, "", notes[0], "", *(f"- {note}" for note in notes[1:])]) + "\n"


def to_latex(columns: Sequence[Column], title: str, notes: Sequence[str]) -> str:
    """Return the table as LaTeX, how it is read in its caption."""
    parts = []
    for part in parts_of(columns):
        _, cells, text = _cells(part)
        parts.append(text_tables.Part([(column.upper, column.lower) for column in part], cells, text))
    caption = " ".join(f"{each.removesuffix('.')}." for each in (title, *notes))
    return text_tables.latex(parts, caption, "tab:comparison")


def parts_of(columns: Sequence[Column]) -> list[list[Column]]:
    """Return the table in parts that are read by themselves, each with the names of the rows.

    What was reached, what it cost, what each target cost, and how rows differ and stand.
    """
    names, *others = columns
    targets = dict.fromkeys(column.upper for column in others if column.is_of_target)
    found = {kind: [names] for kind in ("reached", "spent", *targets, "about")}
    for column in others:
        found[_part_of(column)].append(column)
    return [part for part in found.values() if len(part) > 1]


def _part_of(column: Column) -> str:
    if column.is_of_target:
        return column.upper
    if column.upper in NAMES.values() or column.lower == "on front":
        return "spent"
    return "about" if column.lower in ("settings", "state") else "reached"


def _cells(columns: Sequence[Column]) -> tuple[list[str], list[list[str]], list[int]]:
    cells = [list(line) for line in zip(*(column.cells for column in columns), strict=True)]
    text = [place for place, column in enumerate(columns) if column.is_text]
    return [column.heading for column in columns], cells, text


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as CSV: unrounded, with deviations, and per cent of the baseline with its number of seeds."""
    lines = []
    for row in table:
        line: dict[str, Any] = {
            "row": row["label"], "method": row["method"], "seeds": len(row["seeds"]), "counted": row["counted"],
            "whole": row["is_whole"], "points": row["points"], "points_seeds": len(row["points_seeds"]),
        }  # fmt: skip
        for name, value in row.items():
            if isinstance(value, dict) and "mean" in value:
                line |= _csv_cells(name, value)
        for target in row["targets"]:
            before = f"to_{target['accuracy']:g}"
            line[f"{before}_reached"] = target["reached"]
            for name in ("rounds", *SPENT):
                line |= _csv_cells(f"{before}_{name}", target[name])
        line |= {f"on_front_{name}": name in row["fronts"] for name in SPENT}
        line["settings"] = rows.shortly(row["settings"], at_most=len(row["settings"]))
        lines.append(line)
    return text_tables.to_csv(lines)


def _csv_cells(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    told = {f"{name}_{part}": value[part] for part in ("mean", "std", "percent")}
    return told | {f"{name}_percent_seeds": len(value["percent_seeds"])}
