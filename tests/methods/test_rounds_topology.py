"""Slow rounds of methods whose server changes a sparse topology: FedTiny, FedMef, FedRTS; weight by weight."""

import copy
import math

import pytest
import torch
from torch import nn

from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.executors.in_process import InProcessExecutor
from raysim.methods import mask_rules
from raysim.simulation.preparation import prepare
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport
from raysim.simulation.transition import initial_state
from tests.methods.slow_rounds import (
    aggregate,
    agree,
    batches,
    close,
    everything,
    member,
    members,
    num_steps,
    rate,
    small_scenario,
    train,
)
from tests.methods.test_rounds_sparse import WEIGHTS, erk

NORMED = "model={name: 'tests.oracles:norm_net', options: {channels: [3, 4]}}"
NORMED_WEIGHTS = ("0.weight", "3.weight", "8.weight")


def held_of(kept: dict[str, list[int]], params: Params) -> Params:
    """A mask from the active weights of each layer."""
    held = everything(params)
    for key, active in kept.items():
        held[key] = torch.tensor([i in set(active) for i in range(params[key].numel())]).view(params[key].shape)
    return held


def active(held: torch.Tensor) -> list[int]:
    return [i for i, bit in enumerate(held.flatten().tolist()) if bit]


def best(values: list[float], among: list[int], count: int) -> list[int]:
    return sorted(among, key=lambda i: -values[i])[:count]


def smallest(values: torch.Tensor, among: list[int], count: int) -> list[int]:
    size = magnitudes(values)
    return sorted(among, key=lambda i: -size[i])[len(among) - count :]


def magnitudes(values: torch.Tensor) -> list[float]:
    return values.detach().abs().flatten().tolist()


def cosine(share: float, round: int, last: int) -> float:
    return share / 2 * (1 + math.cos(math.pi * min(1, round / last)))


def num_moved(held: torch.Tensor, share: float) -> int:
    return min(int(share * int(held.sum())), int((~held).sum()))


def random_start(scenario: Scenario, params: Params, sparsity: float) -> Params:
    """Every layer at its ERK density, uniform draws; the highest stay."""
    budget = erk({key: tuple(params[key].shape) for key in WEIGHTS}, 1 - sparsity)
    draws, kept = seeding.generator(scenario.workload.seed, "initial mask"), {}
    for key in WEIGHTS:
        scores = draws.random(tuple(params[key].shape)).flatten().tolist()
        kept[key] = best(scores, list(range(len(scores))), budget[key])
    return held_of(kept, params)


def chosen_start(scenario: Scenario, weights: tuple[str, ...], pool: int, sparsity: float) -> list[Params]:
    """The masks of FedTiny's candidates."""
    params = dict(scenario.workload.model.state_dict())
    rng, found = seeding.generator(scenario.workload.seed, "candidates"), []
    for factors in rng.uniform(0.5, 1.5, (pool, len(weights))).tolist():
        total, low, high = sum(params[key].numel() for key in weights), 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            kept = sum(
                min(1.0, middle * factor) * params[key].numel() for key, factor in zip(weights, factors, strict=True)
            )
            low, high = (middle, high) if kept < (1 - sparsity) * total else (low, middle)
        masks = {}
        for key, factor in zip(weights, factors, strict=True):
            size = magnitudes(params[key])
            masks[key] = best(size, list(range(len(size))), max(1, round(min(1.0, low * factor) * len(size))))
        found.append(held_of(masks, params))
    return found


def trained(
    scenario: Scenario, round: int, params: Params, held: Params
) -> tuple[list[int], list[Params], list[Params]]:
    """Rows of each client of a round, its weights after training, and its gradients of the last minibatch."""
    cohort, after, found = members(scenario, round), [], []
    for client in cohort:
        seen: Params = {}
        after.append(train(scenario, params, client.id, round, held, observe=seen.update)[0])
        found.append(seen)
    return [client.n for client in cohort], after, found


def moved_by_gradient(
    params: Params, held: Params, keys: tuple[str, ...], share: float, ns: list[int], found: list[Params]
) -> Params:
    """Each client's largest gradients of pruned weights, averaged; as many smallest weights are replaced."""
    held = dict(held)
    for key in keys:
        count, others = num_moved(held[key], share), active(~held[key])
        mean = [0.0] * params[key].numel()
        for n, gradients in zip(ns, found, strict=True):
            own = gradients[key].flatten().tolist()
            for i in best(magnitudes(gradients[key]), others, count):
                mean[i] += n / sum(ns) * own[i]
        size, now = magnitudes(params[key]), active(held[key])
        stay = best(size, now, len(now) - count)
        grown = best([abs(value) for value in mean], others, count)
        held |= {key: held_of({key: stay + grown}, params)[key]}
    return held


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ("readjust_rounds: 1, decay_rounds: 4, sparsity: 0.6", [(key,) for key in WEIGHTS]),
        ("readjust_rounds: 2, adjust_share: 0.8, blocks: 2, decay_rounds: 50", [WEIGHTS[:2], WEIGHTS[2:]]),
    ],
    ids=["layers", "blocks"],
)
def test_fedtiny_grows_by_averaged_gradients_block_by_block(options: str, blocks: list[tuple[str, ...]]) -> None:
    scenario = small_scenario("fedtiny", f"method.options={{{options}, pool_size: 1}}")
    given = dict(pair.split(": ") for pair in options.split(", "))
    every, last = int(given["readjust_rounds"]), int(given["decay_rounds"])
    params = {key: value.clone() for key, value in scenario.workload.model.state_dict().items()}
    (start,) = chosen_start(scenario, WEIGHTS, 1, float(given.get("sparsity", 0.5)))
    state, changed = {"held": start}, []

    def play(round: int, params: Params, _: RoundReport) -> Params:
        held = state["held"]
        ns, after, found = trained(scenario, round, params, held)
        params = aggregate("holders", params, ns, after, [held] * 4)
        if round % every == 0 and round <= last:
            keys = blocks[::-1][(round // every - 1) % len(blocks)]
            share = cosine(float(given.get("adjust_share", 0.3)), round, last)
            state["held"] = moved_by_gradient(params, held, keys, share, ns, found)
            changed.append({key for key in WEIGHTS if not torch.equal(held[key], state["held"][key])})
        return {key: value * state["held"][key] for key, value in params.items()}

    agree(scenario, play, rounds=5, params={key: value * start[key] for key, value in params.items()})
    assert changed[:2] == [set(blocks[-1]), set(blocks[-2])]


@pytest.mark.slow
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "BatchNorm"])
def test_fedtiny_starts_from_the_candidate_of_least_loss_with_all_clients_statistics(normed: bool) -> None:
    scenario = small_scenario(
        "fedtiny", "method.options={pool_size: 4, sparsity: 0.7}", *([NORMED] if normed else [])
    )
    workload, weights = scenario.workload, NORMED_WEIGHTS if normed else WEIGHTS
    everybody, models, losses = [member(scenario, id) for id in range(5)], [], []
    for held in chosen_start(scenario, weights, 4, 0.7):
        params = {key: value * held[key] for key, value in workload.model.state_dict().items()}
        statistics = [refreshed(scenario, params, client.id) for client in everybody] if normed else []
        for key in statistics[0] if normed else ():
            rows = [client.n for client in everybody]
            shares = [n / sum(rows) * own[key].double() for n, own in zip(rows, statistics, strict=True)]
            params[key] = torch.stack(shares).sum(0).float()
        model = workload.model
        losses.append(sum(loss_on(model, params, scenario, client.id) for client in everybody))
        models.append((params, held))
    place = losses.index(min(losses))
    assert place > 0
    assert len({round(loss, 4) for loss in losses}) == 4
    state = prepare(scenario, initial_state(scenario), InProcessExecutor(workload))
    expected, held = models[place]
    counts = {key: value for key, value in state.params.items() if key.endswith("num_batches_tracked")}
    close(state.params, expected | counts)
    for key, kept in mask_rules.current(workload.plan, state.memory).items():
        assert torch.equal(kept, held[key])


def refreshed(scenario: Scenario, params: Params, id: int) -> Params:
    """Mean over a client's batches of the mean and the unbiased variance of every BatchNorm's inputs."""
    inputs, _ = scenario.workload.data.train_rows(scenario.workload.population.train[id])
    found: Params = {}
    cut = batches(torch.arange(len(inputs)).numpy(), scenario.workload.local.batch_size)
    for rows in cut:
        hidden = inputs[rows]
        for conv, norm in (("0", "1"), ("3", "4")):
            hidden = nn.functional.conv2d(hidden, params[f"{conv}.weight"], params[f"{conv}.bias"], padding=1)
            mean, variance = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3))
            for name, value in (("running_mean", mean), ("running_var", variance)):
                found[f"{norm}.{name}"] = found.get(f"{norm}.{name}", 0) + value / len(cut)
            spread = hidden.var((0, 2, 3), unbiased=False, keepdim=True)
            hidden = (hidden - mean.view(1, -1, 1, 1)) / (spread + 1e-5).sqrt()
            hidden = (
                hidden * params[f"{norm}.weight"].view(1, -1, 1, 1) + params[f"{norm}.bias"].view(1, -1, 1, 1)
            ).relu()
    return found


def loss_on(model: nn.Module, params: Params, scenario: Scenario, id: int) -> float:
    own = copy.deepcopy(model).eval()
    own.load_state_dict(params)
    inputs, labels = scenario.workload.data.train_rows(scenario.workload.population.train[id])
    with torch.no_grad():
        return float(nn.functional.cross_entropy(own(inputs), labels, reduction="sum"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [(), ("training.schedule={name: exponential, factor: 0.2}",)], ids=["", "falling"]
)
def test_fedmef_pushes_out_what_it_is_about_to_prune(schedule: tuple[str, ...]) -> None:
    options = "readjust_rounds: 3, adjust_share: 1.0, extrusion_penalty: 0.5, decay_rounds: 9, sparsity: 0.6"
    scenario = small_scenario("fedmef", f"method.options={{{options}}}", "training.learning_rate=0.1", *schedule)
    params = {key: value.clone() for key, value in scenario.workload.model.state_dict().items()}
    start = random_start(scenario, params, 0.6)
    state, rates = {"held": start}, []

    def play(round: int, params: Params, _: RoundReport) -> Params:
        cohort, after, found, held = members(scenario, round), [], [], state["held"]
        is_due, share = round % 3 == 0, cosine(1.0, round, 9)
        low = {key: smallest(params[key], active(held[key]), num_moved(held[key], share)) for key in WEIGHTS}
        for client in cohort:
            seen: Params = {}
            if not is_due:
                after.append(train(scenario, params, client.id, round, held)[0])
                continue
            after.append(extruded(scenario, params, client.id, round, held, low, seen, rates))
            found.append(seen)
        ns = [client.n for client in cohort]
        params = aggregate("holders", params, ns, after, [held] * 4)
        if is_due:
            state["held"] = moved_by_gradient(params, held, WEIGHTS, share, ns, found)
        return {key: value * state["held"][key] for key, value in params.items()}

    agree(scenario, play, rounds=3, params={key: value * start[key] for key, value in params.items()})
    assert not torch.equal(start["2.weight"], state["held"]["2.weight"])
    assert (max(rates) > 1) == bool(schedule), "a rate that has not fallen is never too small"


def extruded(
    scenario: Scenario,
    params: Params,
    id: int,
    round: int,
    held: Params,
    low: dict[str, list[int]],
    seen: Params,
    rates: list[float],
) -> Params:
    """SGD with momentum, written out: the penalty's gradient, and a learning rate of its own in every step."""
    workload, local = scenario.workload, scenario.workload.local
    assert local.clip_norm is not None
    model = copy.deepcopy(workload.model).train()
    model.load_state_dict({key: value * held[key] for key, value in params.items()})
    inputs, labels = workload.data.train_rows(workload.population.train[id])
    order = seeding.generator(workload.seed, "batches", round, id)
    velocity: Params = {}
    step, steps = 0, num_steps(scenario, len(labels))
    for _ in range(local.epochs):
        for rows in batches(order.permutation(len(labels)), local.batch_size):
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            named = dict(model.named_parameters())
            squares = sum(float(named[key].detach().flatten()[i]) ** 2 for key, chosen in low.items() for i in chosen)
            falling = (2 * steps - 2 * step) / (2 * steps - step)
            grown = 2 * torch.sigmoid(torch.tensor(math.sqrt(squares))).item() - 1
            speed = max(rate(scenario, round), falling * grown * local.learning_rate)
            rates.append(speed / rate(scenario, round))
            gradients = {}
            for key, weight in named.items():
                seen[key] = weight.grad.clone()
                gradients[key] = weight.grad.clone()
                for i in low.get(key, ()):
                    gradients[key].view(-1)[i] += 2 * 0.5 * weight.detach().flatten()[i]
                gradients[key] *= held[key]
            norm = math.sqrt(sum(float((value.double() ** 2).sum()) for value in gradients.values()))
            for key, weight in named.items():
                gradient = (
                    gradients[key] * min(1.0, local.clip_norm / (norm + 1e-6)) + local.weight_decay * weight.detach()
                )
                velocity[key] = gradient if step == 0 else local.momentum * velocity[key] + gradient
                weight.data -= speed * velocity[key]
                weight.data *= held[key]
            step += 1
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.5, 0.0, 1.0])
def test_fedrts_draws_its_topology_from_what_was_voted_for(gamma: float) -> None:
    options = f"readjust_rounds: 2, decay_rounds: 5, sparsity: 0.6, aggregated_share: {gamma}, evidence: 3.0"
    scenario = small_scenario("fedrts", f"method.options={{{options}}}")
    params = {key: value.clone() for key, value in scenario.workload.model.state_dict().items()}
    start = random_start(scenario, params, 0.6)
    alpha, beta = ({key: [1.0] * params[key].numel() for key in WEIGHTS} for _ in range(2))
    state, moved = {"held": start}, []

    def play(round: int, params: Params, _: RoundReport) -> Params:
        held = state["held"]
        ns, after, found = trained(scenario, round, params, held)
        params = aggregate("holders", params, ns, after, [held] * 4)
        if round > 5:
            return params
        for key in WEIGHTS:
            count, now, others = num_moved(held[key], cosine(0.4, round, 5)), active(held[key]), active(~held[key])
            own = set(best(magnitudes(params[key]), now, len(now) - count))
            cores = [set(best(magnitudes(client[key]), now, len(now) - count)) for client in after]
            tops = [set(best(magnitudes(gradients[key]), others, count)) for gradients in found]
            for i in now if round % 2 else now + others:
                votes = cores if i in now else tops
                share = sum(n for n, chosen in zip(ns, votes, strict=True) if i in chosen) / sum(ns)
                mine = float(i in own) if i in now else 0.5
                outcome = gamma * mine + (1 - gamma) * share
                alpha[key][i] += 3 * outcome
                beta[key][i] += 3 * (1 - outcome)
        if round % 2 == 0:
            draws, kept = seeding.generator(scenario.workload.seed, "topology", round), {}
            for key in WEIGHTS:
                xi = [draws.beta(a, b) for a, b in zip(alpha[key], beta[key], strict=True)]
                kept[key] = best(xi, list(range(len(xi))), len(active(held[key])))
            state["held"] = held_of(kept, params)
            moved.append(sum(int((held[key] != state["held"][key]).sum()) for key in WEIGHTS))
        return {key: value * state["held"][key] for key, value in params.items()}

    final = agree(scenario, play, rounds=6, params={key: value * start[key] for key, value in params.items()})
    assert len(moved) == 2
    assert min(moved) > 0
    for key in WEIGHTS:
        assert final.memory[f"alpha/{key}"].flatten().tolist() == pytest.approx(alpha[key])
        assert final.memory[f"beta/{key}"].flatten().tolist() == pytest.approx(beta[key])
