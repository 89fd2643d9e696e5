"""Slow rounds of methods that mask single entries: PruneFL, FedDST and FIARSE; entry by entry in plain Python."""

import math

import pytest
import torch
from torch import nn

from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.simulation.state import RoundReport
from tests.methods.slow_rounds import (
    aggregate,
    agree,
    everything,
    first,
    held_by,
    member,
    members,
    num_steps,
    small_scenario,
    train,
)

WEIGHTS = ("0.weight", "2.weight", "6.weight", "8.weight")
FLOPS_PER_WEIGHT = {"0.weight": 2 * 2 * 64, "2.weight": 2 * 3 * 64, "6.weight": 2 * 3, "8.weight": 2 * 3}
"""2 per multiply-accumulate; forward, weight and (but for the first) input gradient; 8 x 8 positions."""


def entries(values: Params, keys: tuple[str, ...] = WEIGHTS) -> list[tuple[str, int]]:
    return [(key, place) for key in keys for place in range(values[key].numel())]


def at(values: Params, entry: tuple[str, int]) -> float:
    return float(values[entry[0]].flatten()[entry[1]])


def only(params: Params, chosen: set[tuple[str, int]], keys: tuple[str, ...] = WEIGHTS) -> Params:
    """A mask that holds the chosen entries of some tensors and all of the others."""
    held = everything(params)
    for key in keys:
        kept = [(key, place) in chosen for place in range(params[key].numel())]
        held[key] = torch.tensor(kept).view(params[key].shape)
    return held


@pytest.mark.slow
def test_prunefl_reconfigures_for_squared_gradient_per_second() -> None:
    options = "method.options={reconfigure_rounds: 2, initial_rounds: 4}"
    slow = ("population.tiers.1.step_overhead_s=0.2", "training.learning_rate=0.05")
    scenario = small_scenario("prunefl", options, *slow)
    workload, local = scenario.workload, scenario.workload.local
    devices, squares, densities = workload.population.devices, {}, []

    def seconds(ns: list[int]) -> tuple[float, dict[str, float]]:
        mean_n, constant, per_weight = sum(ns) / len(ns), 0.0, dict.fromkeys(WEIGHTS, 0.0)
        for client in range(len(devices)):
            device = devices.profile(client)
            transfer = 4 / device.down_bytes_per_s + 4 / device.up_bytes_per_s
            biases = 3 + 4 + 5 + 10
            overhead = num_steps(scenario, round(mean_n)) * device.step_overhead_s
            constant += (2 * device.latency_s + overhead + biases * transfer) / len(devices)
            for key in WEIGHTS:
                compute = mean_n * local.epochs * FLOPS_PER_WEIGHT[key] / device.flops_per_s
                per_weight[key] += (transfer + compute) / len(devices)
        return constant, per_weight

    def reconfigured(params: Params, held: Params, ns: list[int], round: int) -> Params:
        constant, time = seconds(ns)
        kept: set[tuple[str, int]] = set()
        for key in WEIGHTS:
            active = [(key, place) for _, place in entries(params, (key,)) if at(held, (key, place))]
            active.sort(key=lambda entry: abs(at(params, entry)))
            kept |= set(active[int(0.3 * 0.5 ** (round / 10_000) * len(active)) :])
        gain = constant_gain = sum(float(value.sum()) for key, value in squares.items() if key not in WEIGHTS)
        assert constant_gain > 0
        gain += sum(at(squares, entry) for entry in kept)
        spent = constant + sum(time[key] for key, _ in kept)
        free = [entry for entry in entries(params) if entry not in kept]
        free.sort(key=lambda entry: -at(squares, entry) / time[entry[0]])
        for entry in free:
            if at(squares, entry) / time[entry[0]] <= gain / spent:
                break
            kept.add(entry)
            gain, spent = gain + at(squares, entry), spent + time[entry[0]]
        densities.append(len(kept) / len(entries(params)))
        return only(params, kept)

    def add_squares(gradients: Params) -> None:
        for key, gradient in gradients.items():
            squares[key] = squares.get(key, 0) + gradient.double() ** 2

    params = {key: value.clone() for key, value in workload.model.state_dict().items()}
    held, everybody = everything(params), [member(scenario, id) for id in range(5)]
    chosen = int(seeding.generator(workload.seed, "initial pruning").choice(5, 1)[0])
    for step in range(4):
        squares.clear()
        params, _ = train(scenario, params, chosen, -step, held, epochs=1, observe=add_squares)
        held = reconfigured(params, held, [client.n for client in everybody], 0)
        params = {key: value * held[key] for key, value in params.items()}
    squares.clear()
    state = {"held": held}

    def play(round: int, params: Params, _: RoundReport) -> Params:
        cohort = members(scenario, round)
        after = [train(scenario, params, c.id, round, state["held"], observe=add_squares)[0] for c in cohort]
        params = aggregate("zero", params, [c.n for c in cohort], after, [state["held"]] * 4)
        if round % 2 == 0:
            state["held"] = reconfigured(params, state["held"], [c.n for c in cohort], round)
            params = {key: value * state["held"][key] for key, value in params.items()}
            squares.clear()
        return params

    agree(scenario, play, rounds=4, params=params)
    assert min(densities) < 0.9
    assert len(set(densities)) > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "training"),
    [
        ("readjust_rounds: 1, sparsity: 0.6", ()),
        ("readjust_rounds: 2, adjust_share: 0.8, decay_rounds: 3", ()),
        ("readjust_rounds: 1", ("training.batch_size=100", "training.epochs=1")),
    ],
    ids=["every round", "every second", "one step"],
)
def test_feddst_moves_its_mask_while_clients_train(options: str, training: tuple[str, ...]) -> None:
    scenario = small_scenario("feddst", f"method.options={{{options}}}", *training)
    workload, given = scenario.workload, dict(pair.split(": ") for pair in options.split(", "))
    sparsity, every = float(given.get("sparsity", 0.5)), int(given["readjust_rounds"])
    share, decay = float(given.get("adjust_share", 0.5)), int(given.get("decay_rounds", 200))
    params = {key: value.clone() for key, value in workload.model.state_dict().items()}
    budget = erk({key: tuple(params[key].shape) for key in WEIGHTS}, 1 - sparsity)
    draws, kept = seeding.generator(workload.seed, "initial mask"), set()
    for key in WEIGHTS:
        scores = torch.from_numpy(draws.random(tuple(params[key].shape))).flatten().tolist()
        kept |= {(key, p) for p in sorted(range(len(scores)), key=lambda p: -scores[p])[: budget[key]]}
    state = {"held": only(params, kept)}
    params = {key: value * state["held"][key] for key, value in params.items()}
    moved = []

    def play(round: int, params: Params, _: RoundReport) -> Params:
        cohort, after, held = members(scenario, round), [], []
        for client in cohort:
            own, seen, steps = {k: v.clone() for k, v in state["held"].items()}, {}, []
            half = num_steps(scenario, client.n) // 2

            def move(model, own=own, seen=seen, steps=steps, half=half) -> None:
                steps.append(1)
                if round % every or len(steps) != half:
                    return
                part = share / 2 * (1 + math.cos(math.pi * min(1, round / decay)))
                for key, weight in model.named_parameters():
                    if key in WEIGHTS:
                        before = own[key].clone()
                        own[key] = pruned_and_regrown(weight.detach(), seen[key], own[key], part)
                        moved.append(int((before != own[key]).sum()))

            trained, _losses = train(
                scenario, params, client.id, round, own, observe=lambda g, seen=seen: seen.update(g), after_step=move
            )
            after.append(trained)
            held.append(own)
        params = aggregate("holders", params, [c.n for c in cohort], after, held)
        if round % every == 0:
            union: set[tuple[str, int]] = set()
            for key in WEIGHTS:
                anybody = [entry for entry in entries(params, (key,)) if any(at(own, entry) for own in held)]
                union |= set(sorted(anybody, key=lambda entry: -abs(at(params, entry)))[: budget[key]])
            state["held"] = only(params, union)
            params = {key: value * state["held"][key] for key, value in params.items()}
        return params

    final = agree(scenario, play, rounds=3, params=params)
    assert bool(moved) == (not training)
    assert max(moved, default=1) > 0
    kept_now = sum(int((final.params[key] != 0).sum()) for key in WEIGHTS)
    assert kept_now == pytest.approx((1 - sparsity) * sum(params[key].numel() for key in WEIGHTS), abs=4)


def erk(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, int]:
    """Densities proportional to sum / product of a layer's dimensions, at most 1, of the wanted density overall."""
    numel = {key: math.prod(shape) for key, shape in shapes.items()}
    low, high = 0.0, 1e9
    for _ in range(200):  # bisection instead of fixing dense layers one after another
        factor = (low + high) / 2
        kept = sum(min(1.0, factor * sum(shapes[key]) / numel[key]) * numel[key] for key in shapes)
        low, high = (factor, high) if kept < density * sum(numel.values()) else (low, factor)
    return {key: max(1, round(min(1.0, low * sum(shapes[key]) / numel[key]) * numel[key])) for key in shapes}


def pruned_and_regrown(weight: torch.Tensor, gradient: torch.Tensor, held: torch.Tensor, part: float) -> torch.Tensor:
    """Without a part of the held entries of least weight, with as many others of greatest gradient."""
    active = [p for p, bit in enumerate(held.flatten().tolist()) if bit]
    others = [p for p, bit in enumerate(held.flatten().tolist()) if not bit]
    replaced = min(int(part * len(active)), len(others))
    size, slope = weight.abs().flatten().tolist(), gradient.abs().flatten().tolist()
    stay = sorted(active, key=lambda p: -size[p])[: len(active) - replaced]
    grown = sorted(others, key=lambda p: -slope[p])[:replaced]
    return torch.tensor([p in {*stay, *grown} for p in range(held.numel())]).view(held.shape)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["weights", "channels"])
def test_fiarse_trains_the_largest_weights_with_the_gradient_of_its_threshold(size: str) -> None:
    """The loss is that of x M(x), its gradient that of equation 3; some weights fall below the threshold."""
    fast = ("training.learning_rate=0.2", "training.momentum=0.5", f"method.options={{size: {size}}}")
    scenario, fallen, numbers = small_scenario("fiarse", *fast), [], set()

    def play(round: int, params: Params, _: RoundReport) -> Params:
        cohort, after, held = members(scenario, round), [], []
        ranked = sorted(entries(params), key=lambda entry: -abs(at(params, entry)))
        for client in cohort:
            number = math.ceil(client.keep * len(ranked) - 1e-9)
            if size == "channels":
                plan = scenario.workload.plan
                number = sum(
                    int(value.sum())
                    for key, value in held_by(plan, first(plan, client.keep), params).items()
                    if key in WEIGHTS
                )
            chosen = ranked[:number]
            threshold = abs(at(params, chosen[-1])) if number < len(ranked) else 0.0
            numbers.add(number)
            own = only(params, set(chosen))

            def above(name: str, weight: torch.Tensor, own=own, threshold=threshold) -> torch.Tensor:
                return own[name] & (weight.abs() >= threshold) if name in WEIGHTS else own[name]

            def loss(model: nn.Module, inputs, labels, own=own, threshold=threshold, above=above) -> torch.Tensor:
                cut = {name: value * above(name, value.detach()) for name, value in model.named_parameters()}
                fallen.append(
                    sum(int((own[name] & ~above(name, value)).sum()) for name, value in model.named_parameters())
                )
                return nn.functional.cross_entropy(torch.func.functional_call(model, cut, (inputs,)), labels)

            def biased(name: str, weight: torch.Tensor, gradient: torch.Tensor, threshold=threshold) -> torch.Tensor:
                if name not in WEIGHTS or threshold == 0:
                    return gradient
                return gradient * (1 + 2 * weight.abs() * threshold / (weight.abs() + threshold) ** 2)

            after.append(train(scenario, params, client.id, round, own, loss=loss, correct=biased)[0])
            held.append(own)
        return aggregate("holders", params, [c.n for c in cohort], after, held)

    agree(scenario, play, rounds=3)
    assert max(fallen) > 0
    assert len(numbers) > 2
