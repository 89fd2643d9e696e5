"""The code in docs/training.md runs unchanged, and the page lists every schedule and optimizer."""

import json
import re
import shlex
from typing import get_args

import pytest

from raysim.client.schedule import SCHEDULES
from raysim.config import loader
from raysim.config.training import TrainingSettings
from raysim.simulation.build import build_scenario
from tests.commands import left_with
from tests.conftest import ROOT
from tests.docs.pages import beside, files_in

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
FILES = files_in(PAGE)
COMMANDS = re.findall(r"^```sh\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with the page's files, and this process in it."""
    with beside(FILES, tmp_path, "recipe", monkeypatch) as here:
        yield here


@pytest.mark.slow
def test_the_file_runs(folder, capsys):
    (command,) = COMMANDS
    assert left_with(*shlex.split(command)[1:], "--output", "out", "--json", "--set", "tracking.uri=none") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rounds"] == 6


def test_the_page_lists_every_schedule_and_its_formulas_hold(folder):
    section = PAGE.split("## Learning rate over rounds\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(SCHEDULES)
    local = build_scenario(loader.load(folder / "recipe.yaml")).workload.local
    shares = [local.learning_rate_in(round) / 0.1 for round in range(1, 7)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, (1 + 2**-0.5) / 2, 1 / 2, (1 - 2**-0.5) / 2])


def test_the_page_lists_every_optimizer():
    section = PAGE.split("## Optimizers\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert listed == list(get_args(TrainingSettings.model_fields["optimizer"].annotation))
