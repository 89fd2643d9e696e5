"""Write tables as Markdown, CSV and LaTeX."""

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raysim.analysis.tables.columns import Column, parts_of

IN_LATEX = str.maketrans({
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "\u00b1": r"$\pm$",
})  # fmt: skip
"""How characters with a meaning in LaTeX are written."""
NO_WIDER = r"\resizebox{\ifdim\width>\linewidth \linewidth\else\width\fi}{!}{%"


def to_markdown(columns: Sequence[Column], title: str, notes: Sequence[str]) -> str:
    """Return a table as Markdown, with the notes below it."""
    return (
        "\n".join([f"# {title}", "", table_of(columns), "", notes[0], "", *(f"- {note}" for note in notes[1:])])
        + "\n"
    )


def table_of(columns: Sequence[Column]) -> str:
    r"""Return a Markdown table, without a line break after its last row.

    >>> print(table_of([Column("", "a|b", ["x"], is_text=True), Column("", "n", ["1"])]))
    | a\|b | n |
    | --- | ---: |
    | x | 1 |
    """
    rule = ["---" if column.is_text else "---:" for column in columns]
    lines = [[column.heading for column in columns], *rows_of(columns)]
    head, *body = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def rows_of(columns: Sequence[Column]) -> list[list[str]]:
    """Return the cells of each row."""
    return [list(line) for line in zip(*(column.cells for column in columns), strict=True)]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return CSV with unrounded numbers and the names of the first row as headings; None is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_latex(columns: Sequence[Column], title: str, notes: Sequence[str], label: str) -> str:
    """Return a LaTeX table, its parts below each other, each at most as wide as a line; needs booktabs and graphicx.

    Args:
        columns: The columns.
        title: The first sentence of the caption.
        notes: The other sentences of the caption.
        label: The label that references use.
    """
    caption = escaped(" ".join(f"{each.removesuffix('.')}." for each in (title, *notes)))
    lines = [
        r"% \usepackage{booktabs, graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{{label}}}",
        r"\footnotesize",
    ]
    for part in parts_of(columns):
        lines += ["", r"\medskip", NO_WIDER, *_tabular(part), "}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _tabular(columns: Sequence[Column]) -> list[str]:
    alignment = "".join("l" if column.is_text else "r" for column in columns)
    upper, rules = list[str](), list[str]()
    for name, group in itertools.groupby(enumerate(columns, start=1), lambda found: found[1].upper):
        indices = [index for index, _ in group]
        upper += [rf"\multicolumn{{{len(indices)}}}{{c}}{{{escaped(name)}}}"] if name else [""] * len(indices)
        rules += [rf"\cmidrule(lr){{{indices[0]}-{indices[-1]}}}"] if name else []
    return [
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        *([" & ".join(upper) + r" \\", "".join(rules)] if rules else []),
        _latex_line([column.lower for column in columns]),
        r"\midrule",
        *map(_latex_line, rows_of(columns)),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(re.sub(r"^-(?=\d)", "$-$", escaped(cell)) for cell in cells) + r" \\"


def escaped(text: str) -> str:
    r"""Return text with the characters escaped that have a meaning in LaTeX.

    >>> print(escaped("100 % of a_b"))
    100 \% of a\_b
    """
    return text.translate(IN_LATEX)
