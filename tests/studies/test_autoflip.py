"""The study of AutoFLIP: its cells can be run, and what is cut is cut in proportion."""

import pytest
import yaml

from raysim.analysis.study import cells
from raysim.analysis.study.plan import Comparison
from tests.conftest import ROOT

FOLDER = ROOT / "studies" / "autoflip"
STUDY = yaml.safe_load((FOLDER / "study.yaml").read_text(encoding="utf-8"))
PAPER_ROUNDS, PAPER_EXPLORATION = 200, 150


def cell_of(name: str) -> Comparison:
    return cells.load(FOLDER).unlent(name)


@pytest.mark.parametrize("name", STUDY["cells"])
def test_every_cell_can_be_run_in_the_papers_setting(name: str) -> None:
    base = cell_of(name).base
    assert base.data.name == ("mnist" if name.startswith("mnist") else "imagefolder")
    assert (base.model.name, base.data.transform.resize, base.population.clients) == ("two-cnn", 24, 20)
    assert base.selection.clients_per_round == (20 if name == "mnist-all-clients" else 5)
    assert (base.data.partition.name, base.data.partition.classes_per_client) == ("classes", 2)
    training = base.training
    assert (training.optimizer, training.learning_rate, training.epochs) == ("adam", 3e-4, 5)


def test_exploration_is_the_papers_share_of_a_run_and_equal_compute_trains_as_much() -> None:
    cell, longer = cell_of("mnist"), cell_of("mnist-equal-compute").base
    clients, epochs = cell.base.population.clients, cell.base.training.epochs
    a_round = cell.base.selection.clients_per_round * epochs
    options = [run.settings.method.options for run in cell.runs if run.settings.method.name == "autoflip"]
    exploration = {given["exploration_epochs"] for given in options}
    assert exploration == {PAPER_EXPLORATION * cell.base.rounds / PAPER_ROUNDS}
    assert (longer.rounds - cell.base.rounds) * a_round == clients * exploration.pop()
    assert {given["prune_share"] for given in options} == {0.0, 0.1, 0.3, 0.5}
