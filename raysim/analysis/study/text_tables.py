"""Tables as text for other programs: Markdown, CSV, LaTeX."""

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IN_LATEX = str.maketrans({
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "\u00b1": r"$\pm$",
})  # fmt: skip
"""How LaTeX writes what it would not print as it is."""
NO_WIDER = r"\resizebox{\ifdim\width>\linewidth \linewidth\else\width\fi}{!}{%"


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


@dataclass(frozen=True, slots=True)
class Part:
    """A table, or a part of one.

    Attributes:
        headings: Two lines for each column; neighbours with the same upper line share it.
        rows: Cells as text.
        text_columns: Places of the columns that hold text; the others hold numbers.
    """

    headings: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)


def latex(parts: Sequence[Part], caption: str, label: str) -> str:
    """Return a LaTeX table, its parts below each other, each at most as wide as a line of text.

    It needs the packages booktabs and graphicx.
    """
    lines = [
        r"% \usepackage{booktabs, graphicx}", r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}",
        rf"\label{{{label}}}", r"\footnotesize",
    ]  # fmt: skip
    for part in parts:
        lines += ["", r"\medskip", NO_WIDER, *_tabular(part), "}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _tabular(part: Part) -> list[str]:
    columns = "".join("l" if place in part.text_columns else "r" for place in range(len(part.headings)))
    upper, rules = list[str](), list[str]()
    for name, group in itertools.groupby(enumerate(part.headings), lambda found: found[1][0]):
        places = [place for place, _ in group]
        upper += [rf"\multicolumn{{{len(places)}}}{{c}}{{{escaped(name)}}}"] if name else [""] * len(places)
        rules += [rf"\cmidrule(lr){{{places[0] + 1}-{places[-1] + 1}}}"] if name else []
    above = [" & ".join(upper) + r" \\", "".join(rules)] if rules else []
    return [
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *above, _latex_line([lower for _, lower in part.headings]),
        r"\midrule", *map(_latex_line, part.rows), r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(re.sub(r"^-(?=\d)", "$-$", escaped(cell)) for cell in cells) + r" \\"


def escaped(text: str) -> str:
    r"""Return text as LaTeX prints it.

    >>> print(escaped("100 % of a_b"))
    100 \% of a\_b
    """
    return text.translate(IN_LATEX)
