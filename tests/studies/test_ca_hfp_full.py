"""The study of CA-HFP at full size: its cells can be run, and its networks have the paper's costs."""

import functools
import json
from typing import Any

import pytest
import torch
import yaml

from raysim.analysis.study import cells
from raysim.analysis.study.plan import Comparison
from raysim.config import loader
from raysim.models import cost, zoo
from raysim.pruning import masks
from raysim.pruning.masks import Mask
from raysim.pruning.significance import first_channels
from raysim.simulation.build import build_scenario
from raysim.simulation.forecast import forecast
from raysim.simulation.scenario import Scenario
from raysim.terminal.console import forecast_table
from tests.conftest import ROOT

FOLDER = ROOT / "studies" / "ca_hfp_full"
STUDY = yaml.safe_load((FOLDER / "study.yaml").read_text(encoding="utf-8"))
SHAPES = {"fashionmnist": ((1, 32, 32), 10), "cifar100": ((3, 32, 32), 100)}
TABLE_1 = {"fedavg", "fedprox", "prunefl", "fedmp", "dapperfl", "ca-hfp"}
TABLE_2 = {("l1", "global"), ("l1", "zero"), ("delta_w", "global"), ("curvature", "global"), ("curvature", "zero")}


@functools.cache
def study() -> cells.Study:
    return cells.load(FOLDER)


def cell_of(name: str) -> Comparison:
    return study().unlent(name)


@pytest.mark.parametrize("name", STUDY["cells"])
def test_every_cell_can_be_run_and_is_what_its_name_says(name: str) -> None:
    comparison = cell_of(name)
    base = comparison.base
    network, data, alpha = name.removeprefix("criteria-").replace("-jpeg", "_jpeg").split("-")
    assert base.data.partition.alpha == float(alpha.removeprefix("alpha"))
    known = {"cifar10_jpeg": "imagefolder", "fmnist": "fashionmnist"}
    assert (base.data.name, base.data.root.endswith("jpeg")) == (known.get(data, data), data == "cifar10_jpeg")
    assert (base.data.transform.pad_to == 32) == (data == "fmnist")
    assert f"{base.model.name}{base.model.options.get('depth', '')}" == network
    paper = (base.rounds, base.population.clients, base.selection.clients_per_round)
    assert paper == (300, 10, 10)
    methods = [run.settings.method for run in comparison.runs]
    if name.startswith("criteria-"):
        assert {(method.score, method.fill or "global") for method in methods} >= TABLE_2
    else:
        assert {method.name for method in methods} == TABLE_1


def test_the_study_has_every_cell_of_both_tables() -> None:
    names = ("fmnist", "cifar10", "cifar10-jpeg", "cifar100")
    table_1 = {f"{net}-{data}" for net in ("vgg16", "resnet32", "resnet56") for data in names}
    table_2 = {f"criteria-vgg16-{data}" for data in names[1:]}
    assert set(STUDY["cells"]) == {
        f"{each}-alpha{alpha}" for each in table_1 | table_2 for alpha in ("0.1", "1", "10")
    }


@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"),
    [
        ("vgg16-cifar10", 15.120, 40.1),
        ("vgg16-fmnist", 15.119, 40.0),
        ("vgg16-cifar100", 15.143, 40.1),
        ("resnet32-cifar10", 0.467, 8.8),
        ("resnet32-fmnist", 0.467, 8.8),
        ("resnet32-cifar100", 0.473, 8.8),
        ("resnet56-cifar10", 0.856, 16.1),
    ],
)
def test_full_models_have_the_papers_parameters_and_macs(name: str, parameters: float, giga_macs: float) -> None:
    settings = cell_of(f"{name}-alpha0.1").base
    shape, classes = SHAPES.get(settings.data.name, ((3, 32, 32), 10))
    with torch.device("meta"):
        model = zoo.MODELS[settings.model.name].build(shape, classes, **settings.model.options)
    macs = cost.forward_flops(model, shape) // 2 * settings.training.batch_size
    assert round(sum(each.numel() for each in model.parameters()) / 1e6, 3) == parameters
    assert round(macs / 1e9, 1) == giga_macs


@functools.cache
def scenario_of(name: str) -> Scenario:
    """The paper's experiment on random images, with few rows."""
    cell = STUDY["cells"][f"{name}-cifar10-alpha0.1"]["set"]
    network = [f"{key}={json.dumps(value)}" for key, value in cell.items() if key.startswith("model")]
    noise = ("data={name: noise, options: {train_rows: 200, test_rows: 10}, heldout_share: 0.0}", "rounds=1")
    return build_scenario(loader.load(FOLDER / "paper.yaml", (*network, *noise)))


def shown(forecast: dict[str, Any], heading: str) -> str:
    column = next(each for each in forecast_table(forecast).columns if each.header == heading)
    return next(iter(column.cells))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "half", "macs", "half_macs"),
    [
        ("vgg16", "3,949,866", 40_139_816_960, "10.1 G"),
        ("resnet32", "235,946", 8_847_966_208, "4.47 G"),
        pytest.param("resnet56", "430,826", 16_095_723_520, "8.09 G", marks=pytest.mark.long),
    ],
)
def test_a_dry_run_shows_the_costs_of_half_of_the_filters(name: str, half: str, macs: int, half_macs: str) -> None:
    found = {"model": name, **forecast(scenario_of(name))}
    assert (found["batch_size"], found["forward_macs_per_batch"]) == (128, macs)
    assert (shown(found, "parameters"), shown(found, "MACs/\nbatch")) == (half, half_macs)


@pytest.mark.slow
def test_254_k_parameters_of_resnet_32_need_two_blocks_of_the_second_stage_whole() -> None:
    scenario = scenario_of("resnet32")
    workload = scenario.workload
    kept = masks.keep_top(workload.plan, first_channels(workload.plan), 0.5).kept.copy()
    for block in (4, 5):
        kept[workload.plan.units[f"stage2_block{block}.conv1"]] = True
    assert scenario.costs.of(Mask(kept)).parameters == 254_442
    assert round(scenario.costs.forward_flops_of(Mask(kept)) / 2 * 128 / 1e9, 2) == 5.07
