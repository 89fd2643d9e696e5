"""Slow rounds of methods that rank channels by the clients' reports: estimators, score forms, mask rules."""

import copy
import math

import numpy as np
import pytest
import torch

from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.methods import resolve as methods
from raysim.methods.mask_rules import _spread
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport
from tests.methods.slow_estimates import FORMS, Entrywise, Fisher, Sums, random_masks, trained_by
from tests.methods.slow_rounds import (
    Kept,
    agree,
    best,
    count,
    l1,
    members,
    sizes,
    small_scenario,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "estimator", "form", "overrides"),
    [
        ("fisher", "fisher", "curvature", ()),
        ("ca-hfp", "fisher", "robust", ("method.score=robust",)),
        ("ca-hfp", "fisher", "channel", ("method.score=channel",)),
        ("ca-hfp", "fisher", "channel", ("method.score=channel", "method.curvature_scale=40.0")),
        ("ca-hfp", "fisher", "exact", ("method.score=exact", "method.score_decay=0.2")),
        ("ca-hfp", "fisher", "printed", ("method.score=printed", "method.include_consumers=true")),
        ("ca-hfp", "variation", "robust", ("method.score=robust",)),
        ("ca-hfp", "variation", "channel", ("method.score=channel",)),
        ("ca-hfp", "variation", "exact", ("method.score=exact", "method.curvature_scale=3.0")),
        ("ca-hfp", "secant", "robust", ("method.score=robust",)),
        ("ca-hfp", "secant", "curvature", ("method.score=curvature", "method.curvature_max=0.5")),
        ("fisher", "fisher", "curvature", ("method.hysteresis=50.0",)),
    ],
    ids=str,
)
def test_channels_are_ranked_by_what_clients_report(
    name: str, estimator: str, form: str, overrides: tuple[str, ...]
) -> None:
    given = ("method.warmup_rounds=1", f"method.estimator={estimator}", "training.epochs=1", *overrides)
    scenario = small_scenario(name, *given)
    plan, consumers = scenario.workload.plan, "method.include_consumers=true" in overrides
    decay = 0.2 if "method.score_decay=0.2" in overrides else 0.9
    scale = {"fisher": 5.0, "variation": 5.0, "secant": 100.0}[estimator]
    scale = next((float(o.split("=")[1]) for o in overrides if "curvature_" in o), scale)
    if estimator == "fisher":
        estimate: Fisher | Entrywise = Fisher(form, consumers, decay, scale=scale)
    else:
        estimate = Entrywise(estimator, form, consumers, decay, scenario, scale)
    last_kept: list[Kept] = []
    stuck: list[bool] = []

    def play(round: int, params: Params, _: RoundReport) -> Params:
        scores, plain = estimate.scores(plan, params), []
        if scores is not None and "method.hysteresis=50.0" in overrides:
            plain = [best(plan, scores, client.keep) for client in members(scenario, round)]
            for group, own in scores.items():
                for unit in range(len(own)):
                    share = sum(unit in kept[group] for kept in last_kept) / len(last_kept)
                    own[unit] += 50.0 * share * abs(own[unit])
        if round == 1 or scores is None:
            kept = random_masks(scenario, params, round)
        else:
            kept = [best(plan, scores, client.keep) for client in members(scenario, round)]
            stuck.append(
                bool(plain) and [set(k[g]) for k in plain for g in k] != [set(k[g]) for k in kept for g in k]
            )
        params, reports = trained_by(scenario, params, round, kept, "global")
        estimate.observe(plan, reports)
        last_kept[:] = kept
        return params

    state = agree(scenario, play, rounds=4 if estimator == "secant" else 3)
    assert set(state.memory)
    assert any(stuck) == ("method.hysteresis=50.0" in overrides), "the bonus decides at least once"


@pytest.mark.slow
def test_ca_hfp_plus_begins_by_norms_and_keeps_what_it_trains_unless_another_scores_six_times_as_much() -> None:
    """All tiers are narrow, so that some channels are never trained."""
    narrow = [f"population.tiers.{tier}.keep_ratio=0.4" for tier in range(4)]
    scenario = small_scenario("ca-hfp+", "training.epochs=1", *narrow)
    plan, estimate, last_kept = scenario.workload.plan, Fisher("channel", False, 0.9), []
    differs: list[bool] = []

    def ranked(params: Params) -> Sums:
        norms, scores = l1(plan, params), estimate.scores(plan, params)
        if scores is None:
            return norms
        for group, own in scores.items():
            squares, known = [norm**2 for norm in norms[group]], [unit for unit, s in enumerate(own) if s < math.inf]
            scale = sum(abs(own[unit]) for unit in known) / sum(squares[unit] for unit in known)
            own[:] = [squares[unit] * scale if own[unit] == math.inf else own[unit] for unit in range(len(own))]
        return scores

    def play(round: int, params: Params, _: RoundReport) -> Params:
        scores = ranked(params)
        plain = [best(plan, scores, client.keep) for client in members(scenario, round)]
        for group, own in scores.items():
            for unit in range(len(own) if last_kept else 0):
                share = sum(unit in kept[group] for kept in last_kept) / len(last_kept)
                own[unit] += 5.0 * share * abs(own[unit])
        kept = [best(plan, scores, client.keep) for client in members(scenario, round)]
        differs.append(
            [set(each[g]) for each in plain for g in each] != [set(each[g]) for each in kept for g in each]
        )
        params, reports = trained_by(scenario, params, round, kept, "damped")
        estimate.observe(plan, reports)
        last_kept[:] = kept
        return params

    state = agree(scenario, play, rounds=4)
    assert any(differs), "the bonus decides at least once"
    served = methods.served(scenario.method, plan, state.params, state.memory)
    silent = [key for key, value in served.items() if not torch.equal(value, state.params[key])]
    assert silent, "what nobody has trained"
    assert not state.memory["trained"].all()


@pytest.mark.slow
def test_hutchinson_ranks_by_products_with_the_hessian() -> None:
    """The diagonal from v (H v), the whole Hessian written out one row at a time."""
    given = (
        "method.estimator=hutchinson", "method.hutchinson_draws=3", "method.warmup_rounds=1", "method.score=robust",
    )  # fmt: skip
    model = ("model.name=mlp", "model.options={hidden: [4]}", "training.epochs=1")
    scenario = small_scenario("ca-hfp", *given, *model)
    workload, estimate = scenario.workload, Fisher("robust", False, 0.9)
    plan = workload.plan

    def play(round: int, params: Params, _: RoundReport) -> Params:
        scores = estimate.scores(plan, params)
        kept = (
            random_masks(scenario, params, round)
            if scores is None
            else [best(plan, scores, client.keep) for client in members(scenario, round)]
        )
        after, reports = trained_by(scenario, params, round, kept, "global")
        measured = [
            (*report[:-1], hutchinson(scenario, report[1], report[3], report[0].id, round)) for report in reports
        ]
        estimate.observe(plan, measured)
        return after

    agree(scenario, play, rounds=3)


def hutchinson(
    scenario: Scenario, start: Params, held: Params, id: int, round: int, draws: int = 3
) -> tuple[Params, Params]:
    """Gradient and estimated diagonal on the client's rows; random signs are those of the cut submodel."""
    workload = scenario.workload
    inputs, labels = workload.data.train_rows(workload.population.train[id])
    names, model = list(start), copy.deepcopy(workload.model).double()
    lengths = [start[name].numel() for name in names]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(flat, lengths)
        weights = {name: piece.view(start[name].shape) for name, piece in zip(names, pieces, strict=True)}
        logits = torch.func.functional_call(model, weights, (inputs.double(),))
        return torch.nn.functional.cross_entropy(logits, labels)

    flat = torch.cat([start[name].flatten() for name in names]).double()
    gradient = torch.autograd.functional.jacobian(loss, flat)
    hessian = torch.autograd.functional.hessian(loss, flat)
    diagonal = torch.zeros_like(flat)
    with seeding.torch_seeded(workload.seed, "layers", round, id):
        for _ in range(draws):
            signs = []
            for name in names:
                full = torch.zeros(lengths[len(signs)], dtype=torch.float64)
                compact = held[name][held[name].flatten(1).any(1)] if held[name].dim() > 1 else held[name][held[name]]
                shape = (len(compact), int(compact[0].sum())) if held[name].dim() > 1 else (len(compact),)
                full[held[name].flatten()] = torch.randint(0, 2, shape).flatten().double() * 2 - 1
                signs.append(full)
            vector = torch.cat(signs)
            diagonal += vector * (hessian @ vector) / draws

    def named(flat: torch.Tensor) -> Params:
        pieces = torch.split(flat, lengths)
        return {name: piece.view(start[name].shape) for name, piece in zip(names, pieces, strict=True)}

    return named(gradient), named(diagonal)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["global", "global-per-flop"])
def test_masks_across_groups_keep_as_many_channels_and_one_of_each_group(rule: str) -> None:
    given = ("method.score=robust", "method.warmup_rounds=1", "training.epochs=1")
    scenario = small_scenario("ca-hfp", f"method.mask={rule}", *given)
    plan, estimate = scenario.workload.plan, Fisher("robust", False, 0.9)
    uneven = []
    flops = dict.fromkeys(sizes(plan), 1.0)
    if rule == "global-per-flop":  # 2 per multiply-accumulate, 64 positions, 2 or 3 passes
        flops = {
            "0": 2 * 64 * 9 * 2 + 2 * 64 * 9 * 4 * 3,
            "2": 2 * 64 * 9 * 3 * 3 + 2 * 16 * 5 * 3,
            "6": 2 * 16 * 4 * 3 + 2 * 10 * 3,
        }

    def across(scores: Sums, keep: float) -> Kept:
        ranked = []
        for group, own in scores.items():
            scale = math.sqrt(sum(score**2 for score in own) / len(own))
            ranked += [(own[unit] / scale / flops[group], group, unit) for unit in range(len(own))]
        ranked.sort(reverse=True)
        kept = {g: [max((e for e in ranked if e[1] == g), key=lambda e: e[0])[2]] for g in scores}
        total = sum(count(size, keep) for size in sizes(plan).values())
        for _score, group, unit in ranked:
            if sum(map(len, kept.values())) < total and unit not in kept[group]:
                kept[group].append(unit)
        uneven.append(any(len(units) != count(sizes(plan)[g], keep) for g, units in kept.items()))
        return kept

    def play(round: int, params: Params, _: RoundReport) -> Params:
        kept = random_scores_across(scenario, params, round, across)
        scores = estimate.scores(plan, params)
        if scores is not None:
            kept = [across(scores, client.keep) for client in members(scenario, round)]
        params, reports = trained_by(scenario, params, round, kept, "global")
        estimate.observe(plan, reports)
        return params

    agree(scenario, play, rounds=3)
    assert any(uneven)


def random_scores_across(scenario: Scenario, params: Params, round: int, across) -> list[Kept]:
    """Warm-up noise, ranked by the same rule."""
    plan, kept = scenario.workload.plan, []
    for client in members(scenario, round):
        noise = seeding.generator(scenario.workload.seed, "random masks", round, client.id).random(plan.num_units)
        kept.append(across({g: noise[plan.units[g]].tolist() for g in sizes(plan)}, client.keep))
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("form", ["curvature", "exact"])
def test_coverage_aware_masks_drop_the_cheapest_pair_until_budgets_are_met(form: str) -> None:
    given = ("method.mask=coverage", "method.fill=damped", "method.warmup_rounds=1", f"method.score={form}")
    scenario = small_scenario("ca-hfp", *given, "training.epochs=1")
    plan, gradient, curvature = scenario.workload.plan, Fisher("g", False, 0.9), Fisher("h", False, 0.9)
    FORMS.update({"g": lambda g, h: g, "h": lambda g, h: h})

    def spread(first: Sums, second: Sums, round: int) -> list[Kept]:
        cohort = members(scenario, round)
        share = [client.n / sum(c.n for c in cohort) for client in cohort]
        kept = [{g: list(range(size)) for g, size in sizes(plan).items()} for _ in cohort]
        for group, size in sizes(plan).items():
            while True:
                costs = []
                for k, client in enumerate(cohort):
                    if len(kept[k][group]) > count(size, client.keep):
                        for unit in kept[k][group]:
                            pruned = sum(share[j] for j in range(len(cohort)) if unit not in kept[j][group])
                            bend = second[group][unit] * (2 * pruned * share[k] + share[k] ** 2)
                            of_form = {"curvature": bend, "exact": -share[k] * first[group][unit] + bend / 2}
                            costs.append((of_form[form], k, unit))
                if not costs:
                    break
                _cost, k, unit = min(costs)
                kept[k][group].remove(unit)
        return kept

    def play(round: int, params: Params, _: RoundReport) -> Params:
        first, second = gradient.scores(plan, params), curvature.scores(plan, params)
        kept = random_masks(scenario, params, round) if first is None else spread(first, second, round)
        params, reports = trained_by(scenario, params, round, kept, "damped")
        gradient.observe(plan, reports)
        curvature.observe(plan, reports)
        return params

    agree(scenario, play, rounds=3)


@pytest.mark.parametrize("seed", range(4))
def test_the_spread_is_greedy_even_where_curvature_is_negative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second, shares = rng.normal(size=6), rng.normal(size=6), rng.dirichlet(np.ones(4))
    to_drop = rng.integers(0, 6, 4).tolist()
    kept, left = np.ones((4, 6), dtype=bool), list(to_drop)
    while any(left):
        pairs = [(k, u) for k in range(4) for u in range(6) if left[k] and kept[k, u]]
        pruned = [sum(shares[k] for k in range(4) if not kept[k, u]) for u in range(6)]
        cost = {
            (k, u): shares[k] * first[u] + second[u] * (2 * pruned[u] * shares[k] + shares[k] ** 2) for k, u in pairs
        }
        k, u = min(pairs, key=lambda pair: cost[pair])
        kept[k, u] = False
        left[k] -= 1
    np.testing.assert_array_equal(_spread(first, second, shares, to_drop), kept)
