"""Tables of means over seeds: their examples hold, and every output has the same cells."""

import csv
import doctest
import io

import pytest

from raysim.analysis.comparison import labels, table
from raysim.analysis.tables import columns, means, text
from raysim.analysis.tables.columns import Column, parts_of

COLUMNS = [
    Column("", "row", ["a|b", "c_d"], is_text=True),
    Column("cost", "MB", ["1", "2"], part="spent"),
    Column("", "state", ["", "failed"], is_text=True, part="about"),
    Column("cost", "s", ["-3", "4"], part="spent"),
]


@pytest.mark.parametrize("module", [columns, means, text, labels, table])
def test_the_examples_hold(module):
    tried = doctest.testmod(module)
    assert tried.attempted
    assert not tried.failed


def test_a_part_has_the_names_of_the_rows_and_its_columns_in_their_order():
    assert [[column.lower for column in part] for part in parts_of(COLUMNS)] == [["row", "MB", "s"], ["row", "state"]]


def test_markdown_latex_and_csv_escape_what_has_a_meaning_in_them():
    lines = text.to_markdown(COLUMNS, "title", ["how", "a note"]).splitlines()
    assert lines[2:6] == [
        "| row | cost MB | state | cost s |",
        "| --- | ---: | --- | ---: |",
        r"| a\|b | 1 |  | -3 |",
        "| c_d | 2 | failed | 4 |",
    ]
    latex = text.to_latex(COLUMNS, "title", ["how"], "tab:x").splitlines()
    assert latex[3:5] == [r"\caption{title. how.}", r"\label{tab:x}"]
    assert r" & \multicolumn{2}{c}{cost} \\" in latex
    assert r"\cmidrule(lr){2-3}" in latex
    assert r"a\textbar{}b & 1 & $-$3 \\" in latex
    assert r"c\_d & failed \\" in latex
    rows = list(csv.DictReader(io.StringIO(text.to_csv([{"a": 0.1, "b": None}, {"a": 1, "b": "x,y"}]))))
    assert rows == [{"a": "0.1", "b": ""}, {"a": "1", "b": "x,y"}]
