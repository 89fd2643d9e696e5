"""Slow rounds of methods whose clients do more than train a submodel: FjORD, FedMP, DapperFL, SCAFFOLD."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.simulation.state import RoundReport
from tests.methods.slow_rounds import (
    aggregate,
    agree,
    best,
    count,
    first,
    held_by,
    l1,
    members,
    num_steps,
    ordered,
    rate,
    sizes,
    small_scenario,
    train,
)


@pytest.mark.slow
@pytest.mark.parametrize("distill", [False, True])
def test_fjord_trains_each_step_at_its_own_width(distill: bool) -> None:
    """A step's gradient is that of the model times the mask of its width; momentum goes on in between."""
    scenario = small_scenario("fjord", f"method.options={{distill: {str(distill).lower()}}}")
    plan, seed, narrow_steps = scenario.workload.plan, scenario.workload.seed, []

    def play(round: int, params: Params, report: RoundReport) -> Params:
        cohort, after, held = members(scenario, round), [], []
        for place, client in enumerate(cohort):
            allowed = [width for width in (0.2, 0.4, 0.6, 0.8, 1.0) if width <= client.keep]
            drawn = seeding.generator(seed, "widths", round, client.id)
            widths = drawn.choice(allowed, num_steps(scenario, client.n)).tolist()
            widest = max(allowed) if distill else max(widths)
            assert report.clients["keep_ratio"][place] == widest
            steps = iter(widths)

            def loss(model: nn.Module, inputs, labels, steps=steps, widest=widest) -> torch.Tensor:
                kept, all_of_it = first(plan, next(steps)), first(plan, widest)
                mask = held_by(plan, kept, params)
                cut = {key: value * mask[key] for key, value in model.named_parameters()}
                logits = torch.func.functional_call(model, cut, (inputs,))
                narrow_steps.append(kept != all_of_it)
                if not distill or kept == all_of_it:
                    return nn.functional.cross_entropy(logits, labels)
                teacher = model(inputs)
                soft = -(teacher.detach().softmax(1) * logits.log_softmax(1)).sum(1).mean()
                return nn.functional.cross_entropy(teacher, labels) + soft

            held.append(held_by(plan, first(plan, widest), params))
            after.append(train(scenario, params, client.id, round, held[-1], loss=loss)[0])
        return aggregate("holders", params, [c.n for c in cohort], after, held)

    agree(scenario, play)
    assert 0 < sum(narrow_steps) < len(narrow_steps)


@pytest.mark.slow
def test_fedmp_plays_a_bandit_per_client() -> None:
    """Discounted upper confidence bounds over a tree of intervals of [0, 0.9], split where they were played."""
    options = "method.options={discount: 0.8, leaf_width: 0.4}"
    scenario = small_scenario("fedmp", options, "selection.clients_per_round=5", "training.epochs=1")
    plan, seed = scenario.workload.plan, scenario.workload.seed
    intervals: dict[int, list[list[float]]] = {id: [[0.0, 0.9]] for id in range(5)}
    plays: dict[int, list[tuple[int, float, float]]] = {id: [] for id in range(5)}
    losses: dict[int, float] = {}
    chosen_later = set()

    def bound(id: int, round: int, low: float, high: float) -> float:
        total = inside = reward = 0.0
        largest = max(abs(gain) for _, _, gain in plays[id]) or 1e-30
        for played, ratio, gain in plays[id]:
            total += 0.8 ** (round - played)
            if low <= ratio < high:
                inside += 0.8 ** (round - played)
                reward += 0.8 ** (round - played) * gain / largest
        if inside == 0:
            return math.inf
        return reward / inside + math.sqrt(2 * math.log(max(total, 1)) / inside)

    def play(round: int, params: Params, report: RoundReport) -> Params:
        cohort, after, held, ratios = members(scenario, round), [], [], []
        for client in cohort:
            found = intervals[client.id]
            place = 0
            if plays[client.id]:
                bounds = [bound(client.id, round, low, high) for low, high in found]
                place = bounds.index(max(bounds))
                chosen_later.add(place)
            low, high = found[place]
            ratios.append(seeding.generator(seed, "pruning ratio", round, client.id).uniform(low, high))
            if high - low > 0.4:
                found[place : place + 1] = [[low, ratios[-1]], [ratios[-1], high]]
        np.testing.assert_allclose(report.clients["keep_ratio"], [1 - ratio for ratio in ratios], rtol=1e-12)
        seconds = report.clients["total_s"].tolist()
        mean = sum(seconds) / len(seconds)
        norms = l1(plan, params)
        for client, ratio, own in zip(cohort, ratios, seconds, strict=True):
            held.append(held_by(plan, best(plan, norms, 1 - ratio), params))
            trained, epochs = train(scenario, params, client.id, round, held[-1])
            after.append(trained)
            gain = losses[client.id] - epochs[0] if client.id in losses else 0.0
            plays[client.id].append((round, ratio, gain / max(abs(own - mean), 0.01 * mean)))
            losses[client.id] = epochs[0]
        return aggregate("global", params, [c.n for c in cohort], after, held)

    agree(scenario, play, rounds=4)
    assert len(chosen_later) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["plain", "proximal"])
def test_dapperfl_fuses_prunes_and_goes_on(objective: str) -> None:
    """One epoch on the full model, fuse, prune by l1, the other epochs; the features' norm is in the loss."""
    option = ("method.objective=proximal", "method.proximal_mu=0.3") if objective == "proximal" else ()
    scenario = small_scenario("dapperfl", "training.epochs=3", *option)
    plan = scenario.workload.plan

    def loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        features = model[:-1](inputs)
        return nn.functional.cross_entropy(model[-1](features), labels) + 0.01 * (features**2).sum(1).mean()

    def play(round: int, params: Params, _: RoundReport) -> Params:
        def pull(name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
            return gradient + (0.3 * (weight - params[name]) if objective == "proximal" else 0)

        cohort, after, held = members(scenario, round), [], []
        alpha = {1: 0.0, 2: 0.72}[round]
        for client in cohort:
            order = ordered(scenario, round, client.id)
            whole, _losses = train(scenario, params, client.id, round, epochs=1, loss=loss, order=order, correct=pull)
            fused = {key: alpha * params[key] + (1 - alpha) * whole[key] for key in params}
            own = held_by(plan, best(plan, l1(plan, fused), client.keep), params)
            rest, _losses = train(
                scenario, fused, client.id, round, own, epochs=2, loss=loss, order=order, correct=pull
            )
            after.append(rest)
            held.append(own)
        return aggregate("global", params, [c.n for c in cohort], after, held)

    agree(scenario, play)


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_corrects_by_control_variates(momentum: float) -> None:
    """c_k becomes the mean of the client's gradients, whatever is clipped; with plain steps that is option II."""
    clip = () if momentum == 0 else ("training.clip_norm=0.1",)
    scenario = small_scenario("scaffold", f"training.momentum={momentum}", "training.clip_norm=null", *clip)
    plan, total = scenario.workload.plan, len(scenario.workload.population.train.rows)
    zeros = {key: torch.zeros(shape) for key, shape in plan.shapes.items()}
    server, variates = copy.deepcopy(zeros), {id: copy.deepcopy(zeros) for id in range(5)}

    def play(round: int, params: Params, _: RoundReport) -> Params:
        cohort, after, held, norms = members(scenario, round), [], [], l1(plan, params)
        changes = copy.deepcopy(zeros)
        for client in cohort:
            own, mask = variates[client.id], held_by(plan, best(plan, norms, client.keep), params)
            shift = lambda name, _, gradient, own=own: gradient + server[name] - own[name]  # noqa: E731
            steps: list[Params] = []
            trained, _losses = train(scenario, params, client.id, round, mask, correct=shift, observe=steps.append)
            assert len(steps) == num_steps(scenario, client.n)
            for key in own:
                new = sum(gradients[key] for gradients in steps) / len(steps)
                new = torch.where(mask[key], new, own[key])
                if momentum == 0:
                    second = (
                        own[key] - server[key] + (params[key] - trained[key]) / (rate(scenario, round) * len(steps))
                    )
                    torch.testing.assert_close(second[mask[key]], new[mask[key]], rtol=1e-3, atol=1e-5)
                changes[key] += client.n * (new - own[key])
                own[key] = new
            after.append(trained)
            held.append(mask)
        for key in server:
            server[key] += changes[key] / total
        return aggregate("global", params, [c.n for c in cohort], after, held)

    state = agree(scenario, play, rounds=3)
    population = scenario.workload.population
    for key in server:
        mean = sum(state.clients[id][f"variate/{key}"] * len(population.train[id]) / total for id in state.clients)
        torch.testing.assert_close(state.memory[f"variate/{key}"].float(), mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(server[key], mean, rtol=1e-4, atol=1e-5)


def test_a_budget_is_met_in_every_group() -> None:
    scenario = small_scenario("magnitude")
    for keep in (0.25, 0.5, 0.75, 1.0):
        kept = best(scenario.workload.plan, l1(scenario.workload.plan, scenario.workload.model.state_dict()), keep)
        assert {group: len(units) for group, units in kept.items()} == {
            group: count(size, keep) for group, size in sizes(scenario.workload.plan).items()
        }
