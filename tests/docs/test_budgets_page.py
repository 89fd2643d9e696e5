"""The code in docs/budgets.md runs unchanged, and the page lists every rule and limit."""

import json
import re
import shlex

import pytest

from raysim.budgets.solver import LIMITS
from raysim.methods.table import METHODS
from raysim.selection.oort import OPTIONS
from raysim.selection.table import SELECTIONS
from tests.commands import left_with
from tests.conftest import ROOT
from tests.docs.pages import beside, files_in

PAGE = (ROOT / "docs" / "budgets.md").read_text(encoding="utf-8")
FILES = files_in(PAGE)
(COMMAND,) = re.findall(r"^```sh\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with beside(FILES, tmp_path, "my_rules", monkeypatch) as folder:
        yield folder


def forecast_of(capsys, *more: str):
    assert left_with(*shlex.split(COMMAND)[1:], "--json", *more) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_the_example_has_budgets_with_different_limits(folder, capsys):
    tiers = forecast_of(capsys)["tiers"]
    assert [tier["limited_by"] for tier in tiers] == ["memory", "deadline", "nothing"]
    assert all(0 < tier["keep_ratio"] < 1 for tier in tiers[:2])


@pytest.mark.slow
def test_the_rule_of_your_own_selects(folder, capsys):
    (rule,) = re.findall(r'`rule: "(.+?)"`', PAGE)
    own = forecast_of(capsys, "--set", f"selection.rule={rule}")
    assert own["train_flops"] > forecast_of(capsys, "--set", "selection.rule=uniform")["train_flops"]


def test_the_page_lists_what_there_is():
    first_cells = re.findall(r"^\| `([a-z -]+)` \|", PAGE, re.MULTILINE)
    assert first_cells == [*LIMITS, *(name for name in sorted(SELECTIONS, key=first_cells.index))]
    assert all(f"`{option}`" in PAGE for option in OPTIONS)
    aside = re.findall(r"`([a-z]+)`", PAGE.split("train the full model (")[1].split(")")[0])
    assert aside == [name for name, method in METHODS.items() if method.ignores_budgets]
