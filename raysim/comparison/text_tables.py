"""Tables as text for other programs: Markdown, CSV, LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

IN_LATEX = str.maketrans({
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "\u00b1": r"$\pm$",
})  # fmt: skip
"""How LaTeX writes what it would not print as it is."""


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    r"""Return a Markdown table, without the line's end after its last row.

    Args:
        headings: One per column.
        rows: Cells as text.
        text_columns: Places of the columns that hold text; the others hold numbers.

    >>> print(markdown(["a|b", "n"], [["x", "1"]]))
    | a\|b | n |
    | --- | ---: |
    | x | 1 |
    """
    below = ["---" if place in text_columns else "---:" for place in range(len(headings))]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in (headings, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (cells[0], below, *cells[1:]))


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return CSV with unrounded numbers, the first row's names as headings; None is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def latex(
    headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str,
    text_columns: Sequence[int] = (0,),
) -> str:  # fmt: skip
    """Return a LaTeX table as wide as a line of text; it needs the packages booktabs and graphicx."""
    columns = "".join("l" if place in text_columns else "r" for place in range(len(headings)))
    return "\n".join([
        r"% \usepackage{booktabs, graphicx}", r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}",
        rf"\label{{{label}}}", r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
        _latex_line(headings), r"\midrule", *map(_latex_line, rows), r"\bottomrule", r"\end{tabular}}",
        r"\end{table}", "",
    ])  # fmt: skip


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    r"""Return text as LaTeX prints it.

    >>> print(escaped("100 % of a_b"))
    100 \% of a\_b
    """
    return text.translate(IN_LATEX)
