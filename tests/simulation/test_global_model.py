"""The served global model: silent dormant channels, re-estimated statistics, other normalizations."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raysim.core import seeding
from raysim.core.errors import SettingError
from raysim.core.tensors import Params
from raysim.executors.in_process import InProcessExecutor
from raysim.methods import resolve as methods
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.state import RoundReport, ServerState
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of, tiny_settings
from tests.methods.slow_rounds import close, members, rate, small_scenario
from tests.planned import plan_round

NARROW = tuple(f"population.tiers.{tier}.keep_ratio=0.3" for tier in range(4))


def play(scenario, rounds: int) -> tuple[list[ServerState], list[RoundReport]]:
    state, executor, states, reports = initial_state(scenario), InProcessExecutor(scenario.workload), [], []
    for _ in range(rounds):
        state, report = run_round(scenario, state, executor)
        states.append(state)
        reports.append(report)
    return states, reports


def test_dormant_channels_are_silent_until_somebody_has_trained_them() -> None:
    """The served model computes what the full one does when every channel nobody has trained yet says zero."""
    given = ("method.silent_dormant=true", "method.warmup_rounds=2", "training.epochs=1", *NARROW)
    scenario = small_scenario("ca-hfp", *given)
    plan, model = scenario.workload.plan, scenario.workload.model
    inputs, labels = scenario.workload.data.test_rows(scenario.test_rows)
    states, reports = play(scenario, 3)
    ever, sizes = np.zeros(plan.num_units, dtype=bool), []
    before = initial_state(scenario)
    for state, report in zip(states, reports, strict=True):
        for mask in plan_round(scenario, before).masks:
            ever |= mask.kept
        sizes.append(int(ever.sum()))
        served = methods.served(scenario.method, plan, state.params, state.memory)
        hidden = inputs
        with torch.no_grad():
            for layer in model:
                name = next(name for name, module in model.named_modules() if module is layer)
                own = {k.split(".")[1]: v for k, v in state.params.items() if k.startswith(f"{name}.")}
                hidden = torch.func.functional_call(layer, own, (hidden,))
                if name in plan.units:
                    says = torch.from_numpy(ever[plan.units[name]]).float()
                    hidden = hidden * says.view(1, -1, *[1] * (hidden.dim() - 2))
            whole = torch.func.functional_call(model, served, (inputs,))
        torch.testing.assert_close(whole, hidden, rtol=1e-5, atol=1e-6)
        assert report.score.primary == float((hidden.argmax(1) == labels).double().mean())
        before = state
    assert sizes[0] < plan.num_units
    assert sizes[-1] > sizes[0]


@pytest.mark.slow
def test_nothing_is_silent_where_it_is_not_asked_for_and_training_is_the_same() -> None:
    loud, silent = (
        play(small_scenario("ca-hfp", *NARROW, f"method.silent_dormant={asked}"), 2) for asked in ("false", "true")
    )
    close(loud[0][-1].params, silent[0][-1].params, rtol=0, atol=0)
    assert loud[1][0].score != silent[1][0].score
    assert loud[0][-1].totals.down_bytes == silent[0][-1].totals.down_bytes


@pytest.mark.slow
def test_silence_that_a_method_has_by_itself_can_be_switched_off() -> None:
    for given, is_silent in ((), True), (("method.silent_after=0",), False):
        scenario = small_scenario("ca-hfp+", *NARROW, *given)
        state = play(scenario, 2)[0][-1]
        served = methods.served(scenario.method, scenario.workload.plan, state.params, state.memory)
        assert any(not torch.equal(served[key], value) for key, value in state.params.items()) == is_silent


@pytest.mark.slow
def test_static_statistics_of_a_method_are_of_batch_norm_alone() -> None:
    """Running statistics of other layers are averaged, as they are without the method's default."""
    model = ("model.name=tests.simulation.test_global_model:instance_normalized", "model.options={}", "rounds=1")
    state = play(build_scenario(tiny_settings("method.name=ca-hfp+", *model)), 1)[0][-1]
    assert not torch.equal(state.params["1.running_var"], torch.ones(4))
    with pytest.raises(SettingError, match="has no effect on a model without BatchNorm"):
        build_scenario(tiny_settings("method.name=ca-hfp+", "method.normalization=static", *model))


def instance_normalized(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a convolution whose InstanceNorm has running statistics."""
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3),
        norm,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


def test_stale_channels_are_silent_until_they_are_trained_again() -> None:
    """With a ranking that all clients share, the served model is the submodel that they have just trained."""
    given = ("method.silent_after=1", "training.epochs=1", *NARROW)
    scenario = small_scenario("magnitude", *given)
    plan, model = scenario.workload.plan, scenario.workload.model
    inputs, _ = scenario.workload.data.test_rows(scenario.test_rows)
    states, _ = play(scenario, 2)
    widest = max(plan_round(scenario, states[0]).masks, key=lambda mask: mask.kept.sum())
    served = methods.served(scenario.method, plan, states[-1].params, states[-1].memory)
    trained = copy.deepcopy(model).eval()
    trained.load_state_dict(dict(states[-1].params))
    compact = plan.extract(trained, widest)
    trained.load_state_dict(dict(served))
    with torch.no_grad():
        torch.testing.assert_close(trained(inputs), compact(inputs), rtol=1e-5, atol=1e-6)


def test_channels_that_fell_silent_are_those_of_more_than_so_many_rounds_ago() -> None:
    given = ("method.silent_after=2", "method.warmup_rounds=9", "selection.clients_per_round=1", *NARROW)
    scenario = small_scenario("ca-hfp", *given)
    plan, before, kept = scenario.workload.plan, initial_state(scenario), []
    for state in play(scenario, 4)[0]:
        kept.append(np.any([mask.kept for mask in plan_round(scenario, before).masks], axis=0))
        before = state
    served = methods.served(scenario.method, plan, before.params, before.memory)
    recent = kept[-1] | kept[-2]
    assert not recent.all()
    assert recent.sum() > kept[-1].sum()
    for group, slot in plan.slots():
        if slot.role == "consumer":
            units = recent[plan.units[group.name]]
            read = served[slot.key].index_select(slot.dim, torch.from_numpy(slot.indices.ravel()))
            speaks = read.movedim(slot.dim, 0).flatten(1).abs().sum(1).reshape(len(units), -1).sum(1) > 0
            np.testing.assert_array_equal(speaks.numpy(), units)


class Normalized(nn.Module):
    """A convolution with BatchNorm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.first(inputs)).relu().mean((2, 3)))


def normalized(method: str, *overrides: str):
    from raysim.pruning.costs import CostTable
    from raysim.pruning.trace import trace

    scenario = small_scenario(method, "training.epochs=1", *overrides)
    with seeding.torch_seeded(0, "model"):
        model = Normalized()
    plan = trace(model, torch.randn(2, 1, 8, 8))
    workload = replace(scenario.workload, model=model, plan=plan)
    return replace(scenario, workload=workload, costs=CostTable(model, plan, (1, 8, 8)))


@pytest.mark.parametrize("method", ["fedavg", "magnitude", "ca-hfp"])
def test_static_normalization_keeps_no_statistics_in_training_and_estimates_them_for_scoring(method: str) -> None:
    scenario = normalized(method, "rounds=1")
    static = methods.resolve(method, {"normalization": "static"}, scenario.workload.local)
    scenario = replace(scenario, method=static)
    (state,), _ = play(scenario, 1)
    inputs, _ = scenario.workload.data.train_rows(scenario.statistics_rows)
    hidden = nn.functional.conv2d(inputs, state.params["first.weight"], state.params["first.bias"])
    torch.testing.assert_close(state.params["norm.running_mean"], hidden.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.params["norm.running_var"], hidden.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_batch_normalization_averages_running_statistics_over_clients() -> None:
    scenario = normalized("fedavg")
    (state,), _ = play(scenario, 1)
    start = {key: value.clone() for key, value in scenario.workload.model.state_dict().items()}
    expected: Params = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in start.items()}
    cohort = members(scenario, 1)
    for client in cohort:
        model = Normalized()
        model.load_state_dict(start)
        inputs, labels = scenario.workload.data.train_rows(scenario.workload.population.train[client.id])
        optimizer = torch.optim.SGD(model.parameters(), rate(scenario, 1), scenario.workload.local.momentum)
        order = seeding.generator(0, "batches", 1, client.id).permutation(len(labels))
        batches = [order[start : start + 5] for start in range(0, len(order), 5)]
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [np.concatenate(batches[-2:])]
        for rows in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), scenario.workload.local.clip_norm)
            optimizer.step()
        for key, value in model.state_dict().items():
            expected[key] += value.double() * client.n / sum(other.n for other in cohort)
    for key in ("first.weight", "norm.weight", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(state.params[key].double(), expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "magnitude"])
def test_group_normalization_leaves_no_running_statistics(method: str) -> None:
    given = ("model.name=resnet32", "model.options={}", "method.normalization=group", "population.clients=2")
    more = ("selection.clients_per_round=1", "data.max_train_examples=20")
    scenario = build_scenario(settings_of(method, *given, *more))
    layers = [type(layer).__name__ for layer in scenario.workload.model.modules()]
    assert "BatchNorm2d" not in layers
    assert layers.count("GroupNorm") == 1 + 30 + 2
    assert not scenario.buffers
