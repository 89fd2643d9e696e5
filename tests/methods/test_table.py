import functools

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client.assignments import Assignments
from raysim.client.local_rules import scaled_outputs
from raysim.client.trainer import ClientTrainer
from raysim.client.training import LocalTraining
from raysim.core import tensors
from raysim.core.errors import SettingError
from raysim.executors.in_process import InProcessExecutor
from raysim.methods import resolve as methods
from raysim.methods.estimators import ESTIMATORS
from raysim.methods.table import METHODS
from raysim.pruning.masks import Mask
from raysim.pruning.significance import FORMS
from raysim.simulation.aggregation import classes_owned
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.planned import plan_round, state_after, view_for

LOCAL = LocalTraining()


@pytest.mark.parametrize(
    ("name", "given", "parts"),
    [
        ("fedavq", {}, ["method.name='fedavq'", "known: fedavg"]),
        ("fedavg", {"score": "exact"}, ["method.score='exact'", "no effect", "objective"]),
        ("random", {"warmup_rounds": 2}, ["method.warmup_rounds=2", "fill"]),
        ("ca-hfp", {"fill": "holder"}, ["method.fill='holder'", "known: holders"]),
        ("ca-hfp", {"score": "x"}, ["method.score='x'", "robust"]),
        ("ca-hfp", {"estimator": "fischer"}, ["method.estimator='fischer'", "known: fisher"]),
        ("ca-hfp", {"fill_gamma": 0.5}, ["method.fill_gamma=0.5", "damped"]),
        ("ca-hfp", {"score": "curvature", "curvature_scale": 2.0}, ["method.curvature_scale=2.0", "curvature alone"]),
        ("fisher", {"curvature_scale": 2.0, "estimator": "hutchinson"}, ["method.curvature_scale=2.0", "hutchinson"]),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, given: dict, parts: list[str]) -> None:
    with pytest.raises(SettingError) as error:
        methods.resolve(name, given, LOCAL)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_variation_needs_sgd() -> None:
    with pytest.raises(SettingError, match=r"training\.optimizer='adam'"):
        methods.resolve("ca-hfp", {"estimator": "variation"}, LocalTraining(optimizer="adam"))


def test_curvature_scale_is_the_batch_size_where_mean_gradients_are_squared_unless_given() -> None:
    batch, defaults = LocalTraining(batch_size=7), {"fisher": 7, "variation": 7, "secant": 1, "hutchinson": 1}
    assert set(defaults) == set(ESTIMATORS)
    for estimator, scale in defaults.items():
        given = {"estimator": estimator, "score": "channel"}
        assert methods.resolve("ca-hfp", given, batch).options.curvature_scale == scale
        assert methods.resolve("ca-hfp", given | {"curvature_scale": 2.0}, batch).options.curvature_scale == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "method.fill=holders", "method.score=printed", "method.estimator=variation", "method.warmup_rounds=1",
        "method.refresh_rounds=3", "method.score_decay=0.1", "method.include_consumers=true",
    ],
)  # fmt: skip
def test_every_option_of_ca_hfp_changes_what_comes_out(override: str) -> None:
    assert params_with(override) != params_with()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("needed", "override"),
    [
        (("method.fill=damped",), "method.fill_gamma=0.9"),
        (("method.warmup_rounds=0",), "method.unseen=l1"),
        *(
            (("method.score=channel", f"method.estimator={estimator}"), "method.curvature_scale=100000.0")
            for estimator in ESTIMATORS
        ),
    ],
)
def test_options_that_belong_to_another_change_what_comes_out(needed: tuple[str, ...], override: str) -> None:
    assert params_with(*needed, override) != params_with(*needed)


@functools.cache
def params_with(*overrides: str) -> str:
    base = ("rounds=6", "method.warmup_rounds=2", "training.epochs=1")
    scenario = build_scenario(tiny_settings(*base, *overrides))
    return tensors.digest(state_after(scenario, 6).params)


@pytest.mark.slow
def test_masks_are_random_per_client_in_the_warm_up_and_shared_after_it() -> None:
    scenario = build_scenario(tiny_settings("method.warmup_rounds=2"))
    state = state_after(scenario, 2)
    warm, _ = methods.rank(scenario.method, view_for(scenario, state, 2))
    ranked, _ = methods.rank(scenario.method, view_for(scenario, state, 3))
    assert warm.shape == (3, scenario.workload.plan.num_units)
    assert not np.array_equal(warm[0], warm[1])
    assert ranked.shape == (scenario.workload.plan.num_units,)
    sums = state.memory["channel_sums"].numpy()
    scores = FORMS[scenario.method.options.score].combine(sums[0], sums[1])
    np.testing.assert_array_equal(ranked, np.where(state.memory["seen"].numpy(), scores, np.inf))


@pytest.mark.slow
def test_the_ranking_is_refreshed_only_when_due() -> None:
    scenario = build_scenario(tiny_settings("method.warmup_rounds=1", "method.refresh_rounds=3"))
    state, executor, rankings = initial_state(scenario), InProcessExecutor(scenario.workload), {}
    for round in range(1, 9):
        scores, _ = methods.rank(scenario.method, view_for(scenario, state, round))
        rankings[round] = scores
        state, _ = run_round(scenario, state, executor)
    for round, earlier in ((3, 2), (4, 2), (6, 5), (7, 5)):
        np.testing.assert_array_equal(rankings[round], rankings[earlier])
    assert not np.array_equal(rankings[5], rankings[4])
    assert not np.array_equal(rankings[8], rankings[7])


def test_uploaded_channel_sums_are_counted() -> None:
    mask = Mask(np.array([True, True, False]))
    for given, expected in (({"score": "channel"}, 16), ({"score": "curvature"}, 8), ({"estimator": "variation"}, 0)):
        assert methods.score_bytes(methods.resolve("ca-hfp", given, LOCAL), mask) == expected
    assert methods.score_bytes(methods.resolve("fedavg", {}, LOCAL), mask) == 0


def test_heterofl_changes_only_the_classifier_rows_of_owned_classes() -> None:
    overrides = ("method.name=heterofl", "training.weight_decay=0.1", "data.partition.alpha=0.05")
    scenario = build_scenario(tiny_settings(*overrides, "data.partition.min_examples=2"))
    planned = plan_round(scenario)
    owned = classes_owned(scenario, planned.cohort)
    assert not owned.all()
    for assignment, classes in zip(planned.assignments, owned, strict=True):
        trained = ClientTrainer(scenario.workload).train(Assignments.of_rows([assignment]), planned.broadcast)
        update = trained.sums["update"]
        changed = update.value("8.weight").abs().sum(1) > 0
        assert changed.tolist() == classes.tolist()


def test_heterofl_uses_halving_levels_and_first_channels() -> None:
    scenario = build_scenario(tiny_settings("method.name=heterofl"))
    planned = plan_round(scenario)
    assert set(planned.cohort.keep_ratios) <= {1.0, 0.5, 0.25}
    for mask in planned.masks:
        for units in scenario.workload.plan.units.values():
            kept = mask.kept[units]
            assert kept[: kept.sum()].all()


def test_scaled_outputs_scale_cut_layers_and_only_while_the_context_lasts() -> None:
    scenario = build_scenario(tiny_settings())
    workload = scenario.workload
    layers = [layer for layer in workload.model if isinstance(layer, nn.Conv2d | nn.Linear)]
    inputs = [torch.randn(2, 1, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 8 * 16), torch.randn(2, 16)]
    plain = [layer(data) for layer, data in zip(layers, inputs, strict=True)]
    with scaled_outputs(workload.model, workload.plan, 4.0):
        scaled = [layer(data) for layer, data in zip(layers, inputs, strict=True)]
    after = [layer(data) for layer, data in zip(layers, inputs, strict=True)]
    for place, factor in enumerate((4, 4, 4, 1)):
        assert torch.equal(scaled[place], plain[place] * factor)
        assert torch.equal(after[place], plain[place])


@pytest.mark.slow
def test_heterofl_re_estimates_batch_norm_before_scoring() -> None:
    overrides = ("method.name=heterofl", "model.name=resnet32", "model.options={}", "rounds=1")
    scenario = build_scenario(tiny_settings(*overrides))
    state = state_after(scenario, 1)
    key = "stem.1.running_mean"
    inputs, _ = scenario.workload.data.train_rows(scenario.statistics_rows)
    hidden = nn.functional.conv2d(inputs, state.params["stem.0.weight"], padding=1)
    torch.testing.assert_close(state.params[key], hidden.mean((0, 2, 3)), rtol=1e-2, atol=1e-3)


def test_the_table_names_its_sources() -> None:
    assert list(METHODS) == [method.name for method in METHODS.values()]
    assert all("arXiv" in method.source for name, method in METHODS.items() if name != "ca-hfp+")
