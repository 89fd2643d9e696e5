"""The diagnostics of a round against slow and obvious computations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from raysim.client import evaluation
from raysim.client.training import LocalTraining
from raysim.core.tensors import digest
from raysim.executors.in_process import InProcessExecutor
from raysim.pruning import submodel
from raysim.pruning.masks import Mask
from raysim.simulation import convergence, diagnostics
from raysim.simulation.build import build_scenario
from raysim.simulation.cohort import choose_masks, view_of
from raysim.simulation.diagnostics import Subject, correlation_in_groups, leave_one_out, rank_correlation
from raysim.simulation.loss_surface import LossSurface, squared_norm
from raysim.simulation.metrics import metrics_of
from raysim.simulation.participants import respond, select_clients
from raysim.simulation.round import run_round
from raysim.simulation.state import RoundReport, ServerState
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.oracles import held_entries

SMALL = ("model.name=mlp", "model.options={hidden: [6, 5]}", "data.max_train_examples=200")
ALWAYS = {
    "predicted_zero_fill", "predicted_zero_fill_full_hessian", "measured_zero_fill", "zero_fill_error",
    "predicted_submodels", "measured_submodels", "score_rank_correlation", "score_rank_correlation_in_groups",
    "mask_overlap", "mask_churn", "gradient_squared_norm", "gradient_variance", "gradient_dissimilarity",
    "smoothness", "bound_printed", "bound_lemma1",
}  # fmt: skip


def played(*overrides: str, rounds: int = 2) -> tuple[ServerState, list[RoundReport]]:
    scenario = build_scenario(tiny_settings(*SMALL, *overrides))
    state, executor, reports = initial_state(scenario), InProcessExecutor(scenario.workload), []
    for _ in range(rounds):
        state, report = run_round(scenario, state, executor)
        reports.append(report)
    return state, reports


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The first round of random masks, weights at random places in the place of zeros."""
    scenario = build_scenario(tiny_settings(*SMALL, "method.name=random"))
    state = initial_state(scenario)
    cohort, _ = respond(scenario, state, select_clients(scenario, state, scenario.cohort_size))
    masks, _ = choose_masks(scenario, view_of(scenario, state, cohort))
    return diagnostics._subject(scenario, state, cohort, masks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ("method.name=ca-hfp", "method.estimator=variation", "method.warmup_rounds=1"),
        ("method.name=heterofl",),
        ("method.name=feddst", "method.options={readjust_rounds: 1}"),
        ("method.name=dapperfl", "training.epochs=2"),
    ],
)
def test_training_does_not_notice(method) -> None:
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    (without, none), (with_, reports) = played(*method), played(*method, "diagnostics.every=2")
    assert torch.equal(torch.get_rng_state(), generator)
    assert digest(with_.params) == digest(without.params)
    assert digest(with_.memory) == digest(without.memory)
    assert with_.totals == without.totals
    assert [bool(report.diagnostics) for report in reports] == [False, True]
    assert not any(report.diagnostics for report in none)


@pytest.mark.slow
def test_estimates_of_the_method_are_held_against_the_same_measurements() -> None:
    _, (first, second) = played("method.estimator=variation", "diagnostics.every=1")
    assert set(first.diagnostics) == ALWAYS
    assert set(second.diagnostics) == ALWAYS | {"estimated_zero_fill", "estimated_submodels"}


def test_dense_clients_make_no_error() -> None:
    _, (report,) = played("method.name=fedavg", "diagnostics.every=1", rounds=1)
    for pair in ("zero_fill", "submodels"):
        assert report.diagnostics[f"predicted_{pair}"] == report.diagnostics[f"measured_{pair}"] == 0
    assert report.diagnostics["zero_fill_error"] == report.diagnostics["mask_churn"] == 0
    assert report.diagnostics["mask_overlap"] == 1
    assert report.diagnostics["bound_printed"] == report.diagnostics["bound_lemma1"]


@pytest.mark.slow
def test_all_diagnostics_and_all_tiers_are_recorded() -> None:
    tier = "{{name: t{0}, share: {1}, keep_ratio: 0.5, flops_per_s: 1.0, down_bytes_per_s: 1.0, up_bytes_per_s: 1.0}}"
    tiers = ", ".join(tier.format(k, 1 / 12) for k in range(12))
    _, reports = played(
        f"population.tiers=[{tiers}]",
        "population.clients=24",
        "selection.clients_per_round=24",
        "method.estimator=variation",
        "diagnostics.every=2",
    )
    metrics = metrics_of(reports[1])
    assert {f"diagnostics/{name}" for name in ALWAYS} < set(metrics)
    assert sum(key.startswith("pruning_ratio/tier/") for key in metrics) == 12


def test_zero_fill_error_entry_by_entry(subject: Subject) -> None:
    weights, total = subject.weights, int(subject.cohort.examples.sum())
    held = [held_entries(subject.plan, mask, weights) for mask in subject.masks]
    expected = 0.0
    for key, weight in weights.items():
        removed = torch.zeros_like(weight)
        for examples, own in zip(subject.cohort.examples.tolist(), held, strict=True):
            removed += examples / total * (~own[key]) * weight
        expected += float((removed**2).sum())
    assert squared_norm(subject.error) == pytest.approx(expected)
    assert expected > 0


def test_predictions_are_exact_for_a_quadratic_loss_without_cross_terms(subject: Subject) -> None:
    rng = np.random.default_rng(1)
    names = subject.surface.names
    curvature = {name: torch.from_numpy(rng.random(tuple(subject.weights[name].shape))) for name in names}
    slope = {name: torch.from_numpy(rng.standard_normal(tuple(subject.weights[name].shape))) for name in names}

    def summed(weights, inputs, labels):
        terms = [curvature[name] * weights[name] ** 2 / 2 + slope[name] * weights[name] for name in names]
        return len(labels) * torch.stack([term.sum() for term in terms]).sum()

    surface = LossSurface(summed, names, subject.surface.inputs, subject.surface.targets)
    bowl = replace(subject, surface=surface)
    gradient = surface.gradient(bowl.weights)
    found = diagnostics._loss_changes(bowl, gradient)
    assert found["predicted_zero_fill"] == pytest.approx(found["measured_zero_fill"], rel=1e-9)
    assert found["predicted_zero_fill_full_hessian"] == pytest.approx(found["measured_zero_fill"], rel=1e-9)
    assert found["predicted_submodels"] == pytest.approx(found["measured_submodels"], rel=1e-9)
    assert abs(found["measured_zero_fill"] - found["measured_submodels"]) > 1e-3
    memory = {f"gradient/{name}": gradient[name] for name in names}
    memory |= {f"curvature/{name}": curvature[name] for name in names}
    estimated = diagnostics._estimated_changes(bowl, memory)
    assert estimated["estimated_zero_fill"] == pytest.approx(found["measured_zero_fill"], rel=1e-9)
    assert estimated["estimated_submodels"] == pytest.approx(found["measured_submodels"], rel=1e-9)


def test_masks_change_the_loss_as_cut_submodels_do(subject: Subject) -> None:
    workload, surface = subject.scenario.workload, subject.surface
    model, inputs, labels = workload.model, surface.inputs.float(), surface.targets

    def loss(mask: Mask) -> float:
        return evaluation.score(workload.task, submodel.extract(model, subject.plan, mask), inputs, labels).mean_loss

    dense = loss(Mask(np.ones(subject.plan.num_units, dtype=np.bool_)))
    expected = sum(p * (loss(mask) - dense) for p, mask in zip(subject.shares, subject.masks, strict=True))
    found = diagnostics._loss_changes(subject, surface.gradient(subject.weights))
    assert found["measured_submodels"] == pytest.approx(expected, rel=1e-3)
    channels = np.array([0, 3, 8])
    alone = [loss(Mask(np.arange(subject.plan.num_units) != channel)) - dense for channel in channels]
    np.testing.assert_allclose(
        leave_one_out(surface, subject.plan, subject.weights, channels), alone, rtol=1e-2, atol=1e-5
    )


def test_rank_correlation_by_hand_and_with_ties() -> None:
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 (16 - 1))
    assert rank_correlation(np.array([0.1, 5.0, 6.0, 90.0]), np.array([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)
    assert rank_correlation(np.arange(5.0), -(np.arange(5.0) ** 3)) == pytest.approx(-1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.integers(0, 4, 12).astype(float), rng.integers(0, 6, 12).astype(float)
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    assert np.isnan(rank_correlation(np.ones(0), np.ones(0)))


def test_correlation_within_groups_does_not_compare_across_them() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2])
    first = np.array([1.0, 2.0, 3.0, 500.0, 400.0, 0.0])
    second = np.array([7.0, 8.0, 9.0, -1.0, -2.0, 3.0])
    assert correlation_in_groups(first, second, groups) == 1
    second[3:5] = -2.0, -1.0
    assert correlation_in_groups(first, second, groups) == pytest.approx((2 * 1 + 1 * -1) / 3)
    assert np.isnan(correlation_in_groups(first[5:], second[5:], groups[5:]))


def test_spread_of_gradients_client_by_client(subject: Subject) -> None:
    workload, weights = subject.scenario.workload, subject.weights
    clients, shares = subject.cohort.clients, subject.shares
    variance, dissimilarity = convergence.gradient_spread(
        workload, subject.surface, weights, clients, shares, round=1
    )
    own = [
        subject.surface.on(*workload.data.train_rows(workload.population.train[client])).gradient(weights)
        for client in clients.tolist()
    ]
    mean = {name: sum(p * gradient[name] for p, gradient in zip(shares, own, strict=True)) for name in own[0]}
    distances = [squared_norm({name: gradient[name] - mean[name] for name in mean}) for gradient in own]
    assert dissimilarity == pytest.approx(shares @ distances)
    assert variance > 0
    alone = convergence.gradient_spread(workload, subject.surface, weights, clients[:1], np.ones(1), round=1)
    assert alone[1] == pytest.approx(0, abs=1e-12)


def test_steps_and_bounds_are_the_theorems() -> None:
    local = LocalTraining(learning_rate=0.5, momentum=0.0, lr_decay=0.5, batch_size=10)
    epochs, examples = np.array([1, 2]), np.array([30, 10])
    assert convergence.steps_and_size(local, 2, epochs, examples) == (3 * 0.75 + 2 * 0.25, 0.25)
    heavy = replace(local, momentum=0.5)  # two steps on a gradient of 1 move 1 + 1.5
    assert convergence.steps_and_size(heavy, 1, np.array([2]), np.array([10])) == pytest.approx((2, 0.5 * 2.5 / 2))
    adam = replace(heavy, optimizer="adam")
    assert convergence.steps_and_size(adam, 1, np.array([2]), np.array([10])) == (2, 0.5)
    eta, E, T, L = 0.1, 5, 20, 3.0
    printed, lemma = convergence.bounds(2.3, E, eta, T, L, spread=0.7, error=0.2)
    common = 4 * 2.3 / (eta * E * T) + 16 * L * eta * E * 0.7
    assert printed == pytest.approx(common + 12 * L * eta * E * 0.2)
    assert lemma == pytest.approx(common + 12 * L / eta * 0.2)


@pytest.mark.slow
def test_churn_compares_with_the_next_rounds_masks() -> None:
    _, (report,) = played("method.name=fedrolex", "diagnostics.every=1", rounds=1)
    scenario = build_scenario(tiny_settings(*SMALL, "method.name=fedrolex"))
    state = initial_state(scenario)
    cohort, _ = respond(scenario, state, select_clients(scenario, state, scenario.cohort_size))
    pairs = [choose_masks(scenario, view_of(scenario, state, replace(cohort, round=round)))[0] for round in (1, 2)]
    changes = [1 - (old.kept & new.kept).sum() / (old.kept | new.kept).sum() for old, new in zip(*pairs, strict=True)]
    assert report.diagnostics["mask_churn"] == pytest.approx(np.average(changes, weights=cohort.examples))
    assert max(changes) > 0
