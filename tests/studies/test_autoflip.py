"""The study of AutoFLIP: its cells can be run, and what is cut is cut in proportion."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from raysim.analysis.study import cells
from raysim.analysis.study.plan import Comparison
from raysim.core.tensors import Params
from raysim.simulation.build import build_scenario
from tests.conftest import ROOT, tiny_settings
from tests.planned import state_after

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


def trained(*overrides: str) -> Params:
    return state_after(build_scenario(tiny_settings(*overrides)), 2).params


RANDOM = "method.name=studies.autoflip.random_masks:RANDOM_MASKS"


def test_random_masks_that_prune_nothing_are_fedavg() -> None:
    ours, plain = trained(RANDOM, "method.options={prune_share: 0.0}"), trained("method.name=fedavg")
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


def test_random_masks_change_in_every_step_of_every_client() -> None:
    """Each step's gradient is zero for about the pruned share of the weights, other weights in each step."""
    scenario = build_scenario(tiny_settings(RANDOM, "method.options={prune_share: 0.5}"))
    rule, model = scenario.method.local[0], scenario.workload.model
    rows, labels = scenario.workload.data.train_rows(np.arange(32))
    masks = []
    for client in (0, 1):
        view = SimpleNamespace(
            workload=scenario.workload, broadcast=SimpleNamespace(round=1), assignment=SimpleNamespace(client=client)
        )
        loss = rule(view, scenario.method.options).loss
        for _ in range(2):
            model.zero_grad()
            loss(model, rows, labels).backward()
            masks.append(model[-1].bias.grad != 0)
    assert 0.2 < torch.stack(masks).float().mean() < 0.8
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks)
