"""The code in docs/compression.md runs unchanged, and the page lists every compression."""

import json
import re
import shlex
from math import ceil

import pytest

from raysim.client.compression import COMPRESSIONS
from raysim.config import loader
from raysim.core import tensors
from raysim.simulation.build import build_scenario
from tests.clocked import played
from tests.commands import left_with
from tests.conftest import ROOT
from tests.docs.pages import beside, files_in

PAGE = (ROOT / "docs" / "compression.md").read_text(encoding="utf-8")
FILES = files_in(PAGE)
COMMANDS = re.findall(r"^```sh\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
SMALL = ("rounds=2", "selection.clients_per_round=4", "model.options={channels: [4, 8], hidden: 16}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with beside(FILES, tmp_path, "my_signs", monkeypatch) as folder:
        yield folder


def tiers_of(capsys, command: str, *more: str):
    assert left_with(*shlex.split(command)[1:], "--dry-run", "--json", *more) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["tiers"]


def test_the_page_lists_what_there_is():
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE) == list(COMPRESSIONS)


@pytest.mark.slow
def test_bytes_are_what_the_page_says(folder, capsys):
    """All of it is exact before anybody trains; the network has 8 tensors."""
    compressed = [tiers_of(capsys, command) for command in COMMANDS]
    for place, tier in enumerate(tiers_of(capsys, COMMANDS[0], "--set", "compression={}")):
        parameters = tier["parameters"]
        assert tier["up_bytes"] == 4 * parameters
        top_k, signs = (tiers[place] for tiers in compressed)
        assert top_k["down_bytes"] == signs["down_bytes"] == tier["down_bytes"]
        assert top_k["up_bytes"] == 4 * ceil(0.05 * parameters) + ceil(parameters / 8)
        assert ceil(parameters / 8) + 4 * 8 <= signs["up_bytes"] <= parameters / 8 + 5 * 8


@pytest.mark.slow
def test_the_compression_of_your_own_trains(folder):
    overrides = [shlex.split(command)[4:] for command in COMMANDS]
    scenarios = [build_scenario(loader.load(folder / "my_compression.yaml", (*SMALL, *each))) for each in overrides]
    states = [played(scenario)[0] for scenario in scenarios]
    assert [len(state.clients) > 4 for state in states] == [True, True]
    assert tensors.digest(states[0].params) != tensors.digest(states[1].params)
