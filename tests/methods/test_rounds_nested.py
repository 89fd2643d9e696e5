"""Slow rounds of NeFL: residual blocks skipped in plain PyTorch, and norms and step sizes kept for each submodel."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from raysim.client import evaluation
from raysim.core.tensors import Params
from raysim.executors.in_process import InProcessExecutor
from raysim.pruning import submodel
from raysim.pruning.masks import Mask
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.state import RoundReport
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of
from tests.methods.slow_rounds import (
    SMALL,
    aggregate,
    agree,
    first,
    held_by,
    members,
    num_steps,
    small_scenario,
    train,
)
from tests.pruning.test_blocks import PostNorm

RESIDUAL = (
    "model.name=tests.methods.test_rounds_nested:residual",
    "model.options={}",
    "training.learning_rate=0.03",
    "training.momentum=0.5",
)
BLOCKS = ("stage.0", "stage.1", "stage.2", "wide.1")
STAGES = (BLOCKS[:3], BLOCKS[3:])
SCALINGS = {"both": (0.5, 1), "width": (1, 0), "depth": (0, 2)}


def residual() -> nn.Module:
    """Two stages, of three blocks with 4 channels, and of a projection and a block with 6."""
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()))
    model.add_module("stage", nn.Sequential(*(PostNorm(4, 4) for _ in range(3))))
    model.add_module("wide", nn.Sequential(PostNorm(4, 6), PostNorm(6, 6)))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Linear(6, 10))
    return model


def normed(layer: nn.BatchNorm2d, inputs: torch.Tensor) -> torch.Tensor:
    layer.num_batches_tracked += 1
    return F.batch_norm(inputs, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=True)


def loss_without(dropped: set[str]):
    """The loss of the model without some blocks; `x + s F(x)` in the others, s a parameter of the last norm."""

    def loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = normed(model.stem[1], model.stem[0](inputs)).relu()
        for name in (*BLOCKS[:3], "wide.0", BLOCKS[3]):
            if name not in dropped:
                block = model.get_submodule(name)
                branch = normed(block.norm2, block.conv2(normed(block.norm1, block.conv1(hidden)).relu()))
                step = block.norm2.step if name in BLOCKS else 1
                hidden = (step * branch + block.project(hidden)).relu()
        unused = sum(0 * parameter.sum() for parameter in model.parameters())
        return F.cross_entropy(model.classifier(hidden.mean((2, 3))), labels) + unused

    return loss


def is_own(key: str) -> bool:
    """Norms and step sizes."""
    return ("norm" in key or key.startswith("stem.1.")) and not key.endswith("num_batches_tracked")


def dropped_blocks(share: float) -> set[str]:
    return {name for stage in STAGES for name in stage[max(1, math.ceil(share * len(stage) - 1e-9)) :]}


def held_at(plan, params: Params, keep: float, scaling: str) -> tuple[Params, set[str]]:
    """The entries of the first channels of each layer and the first blocks of each stage; and the dropped blocks."""
    width, depth = (keep**power for power in SCALINGS[scaling])
    channels = {name: units for name, units in first(plan, width).items() if name not in BLOCKS}
    held = held_by(plan, {**channels, **{name: [0] for name in BLOCKS}}, params)
    dropped = dropped_blocks(depth)
    for key in held:
        if key.startswith(tuple(f"{name}." for name in dropped)) and not key.endswith("num_batches_tracked"):
            held[key] = torch.zeros_like(held[key])
    return held, dropped


@pytest.mark.slow
@pytest.mark.parametrize("scaling", SCALINGS)
def test_nefl_averages_norms_and_steps_among_equal_submodels_and_the_rest_among_holders(scaling: str) -> None:
    scenario = small_scenario("nefl", *RESIDUAL, f"method.options={{scaling: {scaling}}}")
    plan, own, dropped_ever = scenario.workload.plan, dict[float, Params](), set[str]()
    assert [group.name for group in plan.groups if group.kind == "block"] == list(BLOCKS)
    assert sorted(key for key in plan.shapes if key.endswith(".step")) == sorted(
        f"{name}.norm2.step" for name in BLOCKS
    )

    def play(round: int, params: Params, _: RoundReport) -> Params:
        cohort, after, held, counts = members(scenario, round), [], [], []
        moved = {level: [] for level in {client.keep for client in cohort}}
        for client in cohort:
            mine = own.setdefault(client.keep, {key: value.double() for key, value in params.items() if is_own(key)})
            start = {key: mine[key].float() if key in mine else value for key, value in params.items()}
            mask, dropped = held_at(plan, params, client.keep, scaling)
            dropped_ever.update(dropped)
            trained, _losses = train(scenario, start, client.id, round, mask, loss=loss_without(dropped))
            change = {key: mask[key] * (trained[key].double() - start[key].double()) for key in mine}
            moved[client.keep].append((client.n, change))
            after.append(trained)
            held.append(mask)
            counts.append(num_steps(scenario, client.n))
        result = aggregate("holders", params, [c.n for c in cohort], after, held)
        for level, changes in moved.items():
            rows = sum(n for n, _ in changes)
            for key in own[level]:
                own[level][key] = own[level][key] + sum(n * change[key] for n, change in changes) / rows
        for key in result:
            if key.endswith("num_batches_tracked"):
                result[key] = max(trained[key] for trained in after)
        return result | {key: value.float() for key, value in own[max(own)].items()}

    state = agree(scenario, play, rounds=3)
    assert bool(dropped_ever) == (scaling != "width")
    assert len(own) >= 3
    steps = {level: float(mine["stage.0.norm2.step"]) for level, mine in own.items()}
    assert len(set(steps.values())) == len(own)
    for level, mine in own.items():
        for key, value in mine.items():
            found = state.memory[f"own {level:.9g}/{key}"]
            torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=2e-6, msg=f"{level} {key}")


@pytest.mark.slow
def test_a_submodel_is_scored_with_its_own_norms_and_steps() -> None:
    more = ("evaluation.widths=[1.0, 0.5, 0.25]", "rounds=2", "evaluation.max_examples=60")
    scenario = build_scenario(settings_of("nefl", *SMALL, *RESIDUAL, *more))
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    for _ in range(2):
        state, report = run_round(scenario, state, executor)
    workload, plan = scenario.workload, scenario.workload.plan
    trained = [each for each in report.widths[1:] if f"own {each.width:g}/stem.1.weight" in state.memory]
    assert trained
    for each in trained:
        prefix = f"own {each.width:g}/"
        own = {key.removeprefix(prefix): value for key, value in state.memory.items() if key.startswith(prefix)}
        params = {key: own[key].float() if key in own else value for key, value in state.params.items()}
        kept = np.ones(plan.num_units, dtype=np.bool_)
        channels = first(plan, each.width**0.5)
        for group in plan.groups:
            kept[plan.units[group.name]] = np.isin(np.arange(group.size), channels[group.name])
        for name in dropped_blocks(each.width):
            kept[plan.units[name]] = False
        submodel.load_params(workload.model, params)
        small = submodel.extract(workload.model, plan, Mask(kept))
        sums = evaluation.score(workload.task, small, *workload.data.test_rows(scenario.test_rows))
        assert (each.primary, each.loss) == pytest.approx((workload.task.primary_of(sums), sums.mean_loss), rel=1e-5)
