"""Rounds written out slowly, in the full model's coordinates: plain PyTorch, loops over clients and channels.

A submodel is the full model with dropped entries at zero, put back to zero after every step; without
normalization that is the same training. Of raysim only data, partition, plan and random draws are used.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.executors.in_process import InProcessExecutor
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, ServerState
from raysim.simulation.transition import initial_state
from tests.conftest import settings_of
from tests.oracles import held_entries

SMALL = (
    "population.clients=5",
    "selection.clients_per_round=4",
    "model.options={channels: [3, 4], hidden: 5}",
    "data.max_train_examples=50",
    "training.batch_size=5",
    "training.epochs=2",
    "evaluation.max_examples=10",
    "evaluation.client_share=0.0",
)
Kept = Mapping[str, list[int]]
"""Which units of each group stay."""


def small_scenario(method: str, *overrides: str) -> Scenario:
    """Five clients with about eight digits each, and a convolutional network of 480 weights."""
    return build_scenario(settings_of(method, *SMALL, *overrides))


@dataclass
class Member:
    """A client of a cohort; `n` rows, `keep` the share of the channels its tier affords."""

    id: int
    n: int
    keep: float


def members(scenario: Scenario, round: int) -> list[Member]:
    workload = scenario.workload
    rng = seeding.generator(workload.seed, "selection", round)
    ids = rng.choice(len(workload.population), scenario.cohort_size, replace=False)
    return [member(scenario, int(id)) for id in sorted(ids)]


def member(scenario: Scenario, id: int) -> Member:
    population = scenario.workload.population
    return Member(id, len(population.train[id]), float(population.devices.keep_ratio[id]))


def rate(scenario: Scenario, round: int) -> float:
    local = scenario.workload.local
    schedule = local.schedule
    assert (schedule.name, schedule.warmup) in (("constant", 0), ("exponential", 0))
    factor = schedule.factor if schedule.name == "exponential" else 1.0
    return local.learning_rate * (local.lr_decay * factor) ** (max(round, 1) - 1)


def batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows in batches; a lonely last row joins the batch before."""
    cut = [rows[start : start + size] for start in range(0, len(rows), size)]
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [np.concatenate(cut[-2:])]
    return cut


def num_steps(scenario: Scenario, n: int, epochs: int | None = None) -> int:
    local = scenario.workload.local
    return (epochs or local.epochs) * len(batches(np.arange(n), local.batch_size))


def plain_loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs), labels)


def everything(params: Params) -> Params:
    return {key: torch.ones_like(value, dtype=torch.bool) for key, value in params.items()}


def ordered(scenario: Scenario, round: int, id: int) -> np.random.Generator:
    return seeding.generator(scenario.workload.seed, "batches", round, id)


def train(
    scenario: Scenario,
    params: Params,
    id: int,
    round: int,
    held: Params | None = None,
    *,
    epochs: int | None = None,
    loss: Callable[..., torch.Tensor] = plain_loss,
    observe: Callable[[Params], None] | None = None,
    correct: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    order: np.random.Generator | None = None,
    stop: Callable[[float], bool] | None = None,
) -> tuple[Params, list[float]]:
    """The client's parameters after training, dropped entries at zero, and each epoch's mean loss.

    `held` may change while training, in `after_step`; `correct` gives a gradient from name, weight, gradient.
    """
    workload, local = scenario.workload, scenario.workload.local
    held = everything(params) if held is None else held
    model = copy.deepcopy(workload.model).train()
    model.load_state_dict({key: value * held[key] for key, value in params.items()})
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(
        [weight for _, weight in trained], rate(scenario, round), local.momentum, 0, local.weight_decay
    )
    inputs, labels = workload.data.train_rows(workload.population.train[id])
    order, losses = order or ordered(scenario, round, id), []
    for _ in range(local.epochs if epochs is None else epochs):
        losses.append(0.0)
        for rows in batches(order.permutation(len(labels)), local.batch_size):
            optimizer.zero_grad()
            value = loss(model, inputs[rows], labels[rows])
            value.backward()
            if observe is not None:
                observe({name: weight.grad.clone() for name, weight in trained})
            for name, weight in trained:
                if correct is not None:
                    weight.grad = correct(name, weight.detach(), weight.grad)
                weight.grad *= held[name]
            if local.clip_norm is not None:
                nn.utils.clip_grad_norm_([weight for _, weight in trained], local.clip_norm)
            optimizer.step()
            if after_step is not None:
                after_step(model)
            for name, weight in trained:
                weight.data *= held[name]
            losses[-1] += value.item() * len(rows) / len(labels)
        if stop is not None and stop(losses[-1]):
            break
    return {key: value.detach().clone() for key, value in model.state_dict().items()}, losses


def aggregate(
    fill: str, params: Params, ns: list[int], after: list[Params], held: list[Params], gamma: float = 0.5
) -> Params:
    """The four fill rules of the specification, section 1, step 5."""
    result = {}
    for key, value in params.items():
        moved, covered = torch.zeros_like(value, dtype=torch.float64), torch.zeros_like(value, dtype=torch.float64)
        zero_filled = torch.zeros_like(value, dtype=torch.float64)
        for n, client, mask in zip(ns, after, held, strict=True):
            share = n / sum(ns)
            moved += share * mask[key] * (client[key].double() - value.double())
            covered += share * mask[key]
            zero_filled += share * mask[key] * client[key].double()
        by = {"global": 1.0, "holders": covered, "damped": covered**gamma, "zero": 1.0}[fill]
        filled = value.double() + torch.where(covered > 0, moved / by, 0.0)
        result[key] = (zero_filled if fill == "zero" else filled).float()
    return result


def sizes(plan: ChannelPlan) -> dict[str, int]:
    return {group.name: group.size for group in plan.groups}


def count(size: int, keep: float) -> int:
    return max(1, math.ceil(keep * size - 1e-9))


def best(plan: ChannelPlan, scores: Mapping[str, list[float]], keep: float) -> Kept:
    """The highest scores of each group; of equal ones the first."""
    return {
        name: sorted(range(size), key=lambda unit: (-scores[name][unit], unit))[: count(size, keep)]
        for name, size in sizes(plan).items()
    }


def first(plan: ChannelPlan, keep: float) -> Kept:
    return {name: list(range(count(size, keep))) for name, size in sizes(plan).items()}


def mask_of(plan: ChannelPlan, kept: Kept) -> Mask:
    bits = np.zeros(plan.num_units, dtype=np.bool_)
    for name, units in kept.items():
        bits[[plan.units[name].start + unit for unit in units]] = True
    return Mask(bits)


def held_by(plan: ChannelPlan, kept: Kept, params: Params) -> Params:
    return held_entries(plan, mask_of(plan, kept), params)


def own_filter(plan: ChannelPlan, values: Params, consumers: bool = False) -> dict[str, list[float]]:
    """Sums of values over each channel's weight row and bias, and where asked over the weights that read it."""
    sums = {}
    for group in plan.groups:
        sums[group.name] = [0.0] * group.size
        for slot in group.slots:
            if slot.key in values and (slot.role == "weight" or (consumers and slot.role == "consumer")):
                for unit in range(group.size):
                    for index in slot.indices[unit]:
                        sums[group.name][unit] += float(values[slot.key].double().select(slot.dim, int(index)).sum())
    return sums


def l1(plan: ChannelPlan, params: Params) -> dict[str, list[float]]:
    """The l1 norm of each channel's filter, biases not counted."""
    return own_filter(plan, {key: value.abs() for key, value in params.items() if value.dim() > 1})


def agree(
    scenario: Scenario,
    play: Callable[[int, Params, RoundReport], Params],
    rounds: int = 2,
    params: Params | None = None,
) -> ServerState:
    """Hold raysim's parameters after every round against those of a slow round."""
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    params = state.params if params is None else params
    for round in range(1, rounds + 1):
        before = state.params
        state, report = run_round(scenario, state, executor)
        params = play(round, params, report)
        close(state.params, params)
        assert any(not torch.allclose(state.params[key], before[key], atol=1e-3) for key in before)
    return state


def close(actual: Params, expected: Params, rtol: float = 1e-5, atol: float = 2e-6) -> None:
    assert set(actual) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key].double(), value.double(), rtol=rtol, atol=atol)
