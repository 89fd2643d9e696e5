"""The columns of a table with their cells as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysim.analysis.tables.means import LAST

ACCURACIES = {"accuracy_last10": f"last {LAST}", "accuracy": "final", "best_accuracy": "best"}
"""The accuracies of a row, with the second line of their headings."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        upper: The first line of its heading; neighbours with the same first line share it.
        lower: The second line of its heading.
        cells: Its cells, one per row.
        is_text: Whether the cells are text, and no numbers.
        wraps: Whether text may take several lines on a narrow terminal.
        part: The part of the table that it belongs to where one table is too wide; see `parts_of`.
    """

    upper: str
    lower: str
    cells: list[str]
    is_text: bool = False
    wraps: bool = True
    part: str = ""

    @property
    def heading(self) -> str:
        """Both lines of the heading in one."""
        return f"{self.upper} {self.lower}".strip()


def parts_of(columns: Sequence[Column]) -> list[list[Column]]:
    """Return the parts of a table, each of which starts with the first column, the names of the rows."""
    names, *others = columns
    parts: dict[str, list[Column]] = {}
    for column in others:
        parts.setdefault(column.part, [names]).append(column)
    return list(parts.values())


def accuracy(value: Mapping[str, float | None]) -> str:
    """Write mean and deviation of an accuracy in per cent.

    >>> accuracy({"mean": 0.8123, "std": 0.0123}), accuracy({"mean": 0.5, "std": None})
    ('81.2 \u00b1 1.2', '50.0')
    """
    if value["mean"] is None:
        return "-"
    deviation = "" if value["std"] is None else f" \u00b1 {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{deviation}"


def number(value: float) -> str:
    """Write a number with at least three digits, and decimals only if these take fewer.

    >>> [number(value) for value in (1234.5, 12.345, 0.01234, 0.0)]
    ['1,234', '12.3', '0.0123', '0']
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
