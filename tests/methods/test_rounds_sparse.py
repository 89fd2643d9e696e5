"""Slow rounds of methods that mask single entries: PruneFL, FedDST, AutoFLIP; entry by entry in plain Python."""

import math

import pytest
import torch

from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.simulation.state import RoundReport
from tests.methods.slow_rounds import (
    Kept,
    aggregate,
    agree,
    everything,
    held_by,
    member,
    members,
    num_steps,
    own_filter,
    sizes,
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
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "unstructured", "agreement": "sign"},
        {"mode": "structured", "channel_share": 0.4, "channel_threshold": 0.01},
        {"mode": "hybrid", "agreement": "overlap", "channel_share": 0.4, "start": "explored"},
    ],
    ids=["default", "unstructured sign", "structured", "hybrid overlap explored"],
)
def test_autoflip_prunes_where_explorers_did_not_go(options: dict) -> None:
    given = {"exploration_epochs": 6, "patience": 1, "prune_share": 0.4, **options}
    text = ", ".join(f"{name}: {value}" for name, value in given.items())
    scenario = small_scenario("autoflip", f"method.options={{{text}}}")
    plan, pruned_channels = scenario.workload.plan, []
    start = {key: value.clone() for key, value in scenario.workload.model.state_dict().items()}
    explored, displaced, epochs = {}, {}, []
    for id in range(5):
        best_loss = [math.inf]

        def is_exhausted(loss: float, best_loss: list[float] = best_loss) -> bool:
            stops = loss >= best_loss[0]
            best_loss[0] = min(loss, best_loss[0])
            return stops

        explored[id], losses = train(scenario, start, id, 0, epochs=6, stop=is_exhausted)
        displaced[id] = {key: explored[id][key] - start[key] for key in start}
        epochs.append(len(losses))
    params = start
    if options.get("start") == "explored":
        everybody = [member(scenario, id) for id in range(5)]
        params = aggregate(
            "global", start, [c.n for c in everybody], list(explored.values()), [everything(start)] * 5
        )

    def play(round: int, params: Params, _: RoundReport) -> Params:
        cohort = members(scenario, round)
        guidance = guidance_of([displaced[c.id] for c in cohort], [c.n for c in cohort], given)
        keys = tuple(guidance)
        ranked = sorted(entries(guidance, keys), key=lambda entry: -at(guidance, entry))
        stays = set(ranked[: len(ranked) - int(0.4 * len(ranked))])
        kept = channels_kept(plan, guidance, only(params, stays, keys), given)
        pruned_channels.append(plan.num_units - sum(len(units) for units in kept.values()))
        held = only(params, stays, keys) if given.get("mode") != "structured" else everything(params)
        if given.get("mode", "hybrid") != "unstructured":
            held = {key: mask & held[key] for key, mask in held_by(plan, kept, params).items()}
        after = [train(scenario, params, c.id, round, held)[0] for c in cohort]
        return aggregate("zero", params, [c.n for c in cohort], after, [held] * 4)

    state = agree(scenario, play, rounds=2, params=params)
    assert min(epochs) < 6, "some explorer stops early"
    if "channel_share" in options:
        assert max(pruned_channels) > 0
    train_flops = scenario.costs.dense.train_flops
    ns = [member(scenario, id).n for id in range(5)]
    spent = sum(n * own * train_flops for n, own in zip(ns, epochs, strict=True))
    assert state.totals.preparation_flops == spent, "exploration is paid for, and only as long as it lasted"
    assert state.totals.preparation_bytes == 5 * 2 * scenario.costs.dense.model_bytes


def guidance_of(displaced: list[Params], ns: list[int], given: dict) -> Params:
    """Mean squared displacement, scaled to [0, 1] in each tensor, times how far clients agree."""
    guidance = {}
    for key in displaced[0]:
        mean = sum(own[key].double() ** 2 for own in displaced) / len(displaced)
        scaled = ((mean - mean.min()) / (mean.max() - mean.min())).flatten()
        agreed = torch.ones_like(scaled)
        for place in range(len(scaled)):
            moves = [float(own[key].flatten()[place]) for own in displaced]
            if given.get("agreement") == "sign":
                signs = [(move > 0) - (move < 0) for move in moves]
                agreed[place] = abs(sum(n * sign for n, sign in zip(ns, signs, strict=True)) / sum(ns))
        if given.get("agreement") == "overlap":
            agreed = torch.zeros_like(scaled)
            for own in displaced:
                moves = own[key].abs().flatten().tolist()
                top = sorted(range(len(moves)), key=lambda p, moves=moves: -moves[p])
                agreed[top[: len(moves) - int(given["prune_share"] * len(moves))]] += 1 / len(displaced)
        guidance[key] = (scaled * agreed).view(mean.shape)
    return guidance


def channels_kept(plan, guidance: Params, held: Params, given: dict) -> Kept:
    """Channels with less than 90 % of their own entries pruned and a mean above the threshold; the best one stays."""
    number = own_filter(plan, {key: torch.ones_like(value) for key, value in guidance.items()})
    gone = own_filter(plan, {key: (~held[key]).double() for key in guidance})
    total = own_filter(plan, guidance)
    kept = {}
    for group, size in sizes(plan).items():
        mean = [total[group][unit] / number[group][unit] for unit in range(size)]
        share = [gone[group][unit] / number[group][unit] for unit in range(size)]
        most, least = given.get("channel_share", 0.9), given.get("channel_threshold", 0.0)
        kept[group] = [unit for unit in range(size) if share[unit] < most and mean[unit] > least]
        kept[group] = sorted({*kept[group], mean.index(max(mean))})
    return kept
