"""The estimators against the specification's formulas, client by client and entry by entry."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from raysim.client.assignments import Assignments
from raysim.client.hooks import GradientMoments, LocalHooks
from raysim.client.trainer import ClientTrainer
from raysim.client.training import LocalTraining, effective_steps, train
from raysim.core import seeding
from raysim.core.tensors import one_thread
from raysim.data.batches import batch_slices
from raysim.executors.in_process import InProcessExecutor
from raysim.methods import resolve as methods
from raysim.methods.estimators import ESTIMATORS
from raysim.methods.mask_rules import MASKS
from raysim.methods.method import CohortReport
from raysim.methods.scores import curvature_score, l1_score, with_bonus
from raysim.pruning import submodel
from raysim.pruning.coverage import count_coverage
from raysim.pruning.masks import CohortMasks, Mask, num_kept
from raysim.pruning.significance import channel_sums
from raysim.simulation import round as rounds
from raysim.simulation.build import build_scenario
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.oracles import held_entries
from tests.planned import plan_round


@functools.cache
def one_round(estimator: str):
    """Each client's full-coordinate update in a round with random masks, and the report of all."""
    given = (f"method.estimator={estimator}", "method.score=channel", "selection.clients_per_round=4")
    scenario = build_scenario(tiny_settings(*given))
    workload, state = scenario.workload, initial_state(scenario)
    planned = plan_round(scenario, state)
    cohort, masks = planned.cohort, planned.masks
    contribution = ClientTrainer(workload).train(planned.assignments, planned.broadcast)
    alone = [
        ClientTrainer(workload).train(Assignments.of_rows([assignment]), planned.broadcast)
        for assignment in planned.assignments
    ]
    coverage = count_coverage(workload.plan, masks, cohort.examples)
    report = CohortReport(planned.view, contribution, masks, coverage, np.ones(len(masks)))
    return scenario, state, cohort, masks, alone, report


@pytest.mark.slow
def test_variation_is_the_specifications_formula() -> None:
    scenario, state, cohort, masks, alone, report = one_round("variation")
    workload, local = scenario.workload, scenario.workload.local
    memory = ESTIMATORS["variation"].update({}, report)
    held = [held_entries(workload.plan, mask, state.params) for mask in masks]
    assert {key for key in memory if key.startswith("curvature/")} == {f"curvature/{key}" for key in state.params}
    for key, current in state.params.items():
        first, second, share = (torch.zeros(current.shape, dtype=torch.float64) for _ in range(3))
        for k, examples in enumerate(cohort.examples.tolist()):
            update = alone[k].sums["update"].value(key) / examples
            steps = effective_steps(local.num_steps(examples), local.momentum)
            gradient = -update / (local.learning_rate * steps)
            rows_per_batch = examples / replace(local, epochs=1).num_steps(examples)
            first += examples * held[k][key] * gradient
            second += examples * held[k][key] * rows_per_batch * gradient**2
            share += examples * held[k][key].double()
        expected = torch.where(share > 0, first / share.clamp_min(1), 0)
        torch.testing.assert_close(memory[f"gradient/{key}"], expected, rtol=1e-4, atol=1e-7)
        expected = torch.where(share > 0, second / share.clamp_min(1), 0)
        torch.testing.assert_close(memory[f"curvature/{key}"], expected, rtol=1e-3, atol=1e-7)
        assert torch.equal(memory[f"curvature_seen/{key}"].expand(current.shape), share > 0)


@pytest.mark.slow
def test_fisher_averages_the_holders_sums_per_entry_that_they_held() -> None:
    scenario, state, cohort, masks, alone, report = one_round("fisher")
    memory, plan = ESTIMATORS["fisher"].update({}, report), scenario.workload.plan
    held = [held_entries(plan, mask, state.params) for mask in masks]
    shares = []
    for group, units in plan.units.items():
        filters, bias = state.params[f"{group}.weight"], state.params[f"{group}.bias"]
        for unit in range(units.start, units.stop):
            holders = [k for k, mask in enumerate(masks) if mask.kept[unit]]
            own = [int(held[k][f"{group}.weight"][unit - units.start].sum()) + 1 for k in holders]
            whole = filters[unit - units.start].numel() + bias[unit - units.start].numel()
            sums = sum(int(cohort.examples[k]) * alone[k].channel_sums[0][:2, unit] for k in holders)
            entries = sum(int(cohort.examples[k]) * number for k, number in zip(holders, own, strict=True))
            expected = whole * sums / entries if holders else np.zeros(2)
            np.testing.assert_allclose(memory["channel_sums"][:, unit].numpy(), expected, rtol=1e-9, atol=1e-300)
            assert bool(memory["seen"][unit]) == bool(holders)
            shares += [number / whole for number in own]
    assert min(shares) < 0.5 < max(shares) == 1


@pytest.mark.parametrize("narrow", [0.25, 0.5, 0.75])
def test_a_channel_that_narrow_clients_hold_too_is_not_smaller_for_it(narrow: float) -> None:
    """Every entry is worth 1: a channel that all hold and one that only the wide client holds score the same."""
    report = one_round("fisher")[-1]
    num_units = report.contribution.channel_sums.shape[2]
    kept, sums = np.ones((2, num_units), dtype=np.bool_), np.ones((2, 3, num_units))
    kept[1, num_units // 2 :] = False
    sums[1] = narrow  # a sum over this share of the entries, which are all alike
    sums[1, :, num_units // 2 :] = 0
    masks = CohortMasks.of([Mask(each) for each in kept])
    cohort = replace(report.view.cohort, examples=np.array([30, 50]), clients=np.arange(2))
    two = replace(
        report,
        view=replace(report.view, cohort=cohort),
        masks=masks,
        contribution=replace(report.contribution, channel_sums=sums),
    )
    memory = ESTIMATORS["fisher"].update({}, two)
    np.testing.assert_allclose(memory["channel_sums"].numpy(), 1, rtol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_channel_that_nobody_has_held_has_no_sums_and_comes_first(estimator: str) -> None:
    never = slice(2, 5)
    report = one_round(estimator)[-1]
    view = replace(report.view, options=replace(report.view.options, warmup_rounds=0))
    masks = CohortMasks.of([Mask(np.where(in_slice(mask.kept, never), False, mask.kept)) for mask in report.masks])
    coverage = count_coverage(view.plan, masks, view.examples)
    sums = report.contribution.channel_sums * masks.kept[:, None]
    unseen = replace(
        report, masks=masks, coverage=coverage, contribution=replace(report.contribution, channel_sums=sums)
    )
    update, memory = ESTIMATORS[estimator].update, {}
    for step in (0.0, 0.1):  # a secant needs weights that have moved
        moved = {key: value + step for key, value in view.params.items()}
        memory = update(memory, replace(unseen, view=replace(view, params=moved)))
    scores = curvature_score(replace(view, memory=memory))
    tried = masks.kept.any(axis=0)
    assert not tried[never].any()
    np.testing.assert_array_equal(np.isposinf(scores), ~tried)
    raised = with_bonus(
        replace(
            view,
            memory=memory | {"kept_share": torch.ones(len(scores), dtype=torch.float64)},
            options=replace(view.options, hysteresis=0.5),
        ),
        scores,
    )
    np.testing.assert_allclose(raised[tried], scores[tried] + 0.5 * np.abs(scores[tried]))
    six_times = replace(
        view,
        memory={"kept_share": torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64)},
        options=replace(view.options, hysteresis=5.0),
    )
    np.testing.assert_allclose(with_bonus(six_times, np.array([2.0, -2.0, 2.0, -2.0])), [12.0, 0.0, 7.0, -2.0])
    by_norms = replace(view, memory=memory, options=replace(view.options, unseen="l1"))
    ranked = curvature_score(by_norms)
    np.testing.assert_array_equal(ranked[tried], scores[tried])
    assert np.isfinite(ranked).all()
    for units in view.plan.units.values():
        new = ~tried[units]
        in_order = ranked[units][new][np.argsort(l1_score(view)[units][new])]
        assert (np.diff(in_order) >= 0).all(), "by their norms, where no client has held them"
    np.testing.assert_array_equal(curvature_score(replace(by_norms, memory={})), l1_score(view))
    for rule in MASKS.values():
        chosen = rule(replace(view, memory=memory), scores)
        assert all(mask.kept[never].sum() >= min(3, room) for mask, room in zip(chosen, rooms(view), strict=True))


def in_slice(kept: np.ndarray, places: slice) -> np.ndarray:
    inside = np.zeros(len(kept), dtype=np.bool_)
    inside[places] = True
    return inside


def rooms(view) -> list[int]:
    """How many channels of the first group, which has four, every client may keep."""
    return [num_kept(4, ratio) for ratio in view.keep_ratios]


@pytest.mark.parametrize(("rows", "expected"), [(7, [7]), (16, [16]), (17, [17]), (37, [16, 16, 5]), (1, [1])])
def test_squares_count_with_the_rows_of_their_minibatch(rows: int, expected: list[int]) -> None:
    """Gradients of 1 and then 2 and so on: the mean of rows x g^2 at the default scale, the batch size."""
    local = LocalTraining(batch_size=16)
    shares = [(batch.stop - batch.start) / 16 for batch in batch_slices(rows, 16)]
    moments, layer = GradientMoments(shares), torch.nn.Linear(1, 1, bias=False)
    steps = range(1, 2 * len(expected) + 1)
    for step in steps:
        moments([torch.full((1, 1), float(step))])
    _, squares = moments.means(layer)
    wanted = np.mean([expected[(step - 1) % len(expected)] * step**2 for step in steps])
    scale = methods.resolve("ca-hfp", {"score": "channel"}, local).options.curvature_scale
    assert scale * float(squares["weight"]) == pytest.approx(wanted)


@pytest.mark.slow
def test_fisher_clients_report_their_gradients_at_the_rounds_start_weights() -> None:
    scenario, state, cohort, masks, alone, _ = one_round("fisher")
    workload = scenario.workload
    cut = submodel.cut_for(workload.plan, masks[0])
    compact = submodel.extract_params(state.params, cut)
    model = submodel.extract(workload.model, workload.plan, masks[0])
    submodel.load_params(model, compact)
    client, batches = int(cohort.clients[0]), batch_slices(int(cohort.examples[0]), 16)
    moments = GradientMoments([(batch.stop - batch.start) / 16 for batch in batches])
    inputs, labels = workload.data.train_rows(workload.population.train[client])
    with one_thread():
        order = seeding.generator(workload.seed, "batches", 1, client)
        hooks, rate = LocalHooks(observe=(moments,)), workload.local.learning_rate
        train(model, inputs, labels, workload.task, workload.local, rate, order, hooks)
    gradient, curvature = moments.means(model)
    first = channel_sums(workload.plan, {k: g * compact[k] for k, g in gradient.items()}, cut)
    second = channel_sums(workload.plan, {k: h * compact[k] ** 2 for k, h in curvature.items()}, cut)
    np.testing.assert_allclose(alone[0].channel_sums[0, :2], np.stack([first, 16 * second]), rtol=1e-4, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_nobody_held_keeps_its_estimate(estimator: str) -> None:
    *_, report = one_round(estimator)
    update = ESTIMATORS[estimator].update
    once = update({}, report)
    nobody = replace(
        report,
        view=replace(report.view, cohort=replace(report.view.cohort, examples=report.view.examples * 0)),
        coverage={key: count * 0 for key, count in report.coverage.items()},
    )
    again = update(once, nobody)
    assert once
    assert all(torch.equal(again[key].nan_to_num(7), once[key].nan_to_num(7)) for key in once)


@pytest.mark.slow
def test_buffers_have_no_gradient_and_are_not_estimated() -> None:
    """A counter that grows by one a step would be a gradient of 1 / rate."""
    overrides = ("model.name=resnet32", "model.options={}", "training.learning_rate=1e-4", "training.momentum=0")
    scenario = build_scenario(tiny_settings("method.estimator=variation", "training.epochs=1", *overrides))
    state, _ = rounds.run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    names = {name for name, _ in scenario.workload.model.named_parameters()}
    assert {key.partition("/")[2] for key in state.memory} == names
