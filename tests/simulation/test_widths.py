"""The global model cut to several widths: by the masks of the method, scored as a submodel of its own would be."""

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client import evaluation
from raysim.executors.in_process import InProcessExecutor
from raysim.methods.table import METHODS
from raysim.pruning import elements, submodel
from raysim.pruning.masks import Mask, keep_top, num_kept
from raysim.pruning.significance import first_channels, l1_norms
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, ServerState
from raysim.simulation.transition import initial_state
from raysim.simulation.widths import DRAWS, MOST, default_widths, masks_at
from tests.clocked import QUICK
from tests.conftest import settings_of

SHORT = (*QUICK, "rounds=2", "evaluation.widths=[0.5, 1.0, 0.25]")
NORMED = (f"model.name={__name__}:normed", "model.options={}")


def normed(num_classes: int) -> nn.Module:
    """Two convolutions with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


def states_of(scenario: Scenario) -> tuple[list[ServerState], list[RoundReport]]:
    """The states before each round and at the end, and the reports."""
    states, reports, executor = [initial_state(scenario)], [], InProcessExecutor(scenario.workload)
    while not scenario.is_over(states[-1]):
        state, report = run_round(scenario, states[-1], executor)
        states.append(state)
        reports.append(report)
    return states, reports


def scored(scenario: Scenario, state: ServerState, mask: Mask) -> tuple[float, float]:
    """Accuracy and loss of the model that is cut out, built as a model of its own."""
    workload = scenario.workload
    submodel.load_params(workload.model, state.params)
    small = submodel.extract(workload.model, workload.plan, mask)
    if scenario.method.rules.static_norm and evaluation.batch_norms(small):
        rows = scenario.statistics_rows
        pieces = np.array_split(rows, max(1, len(rows) // evaluation.BATCH))
        evaluation.estimate_statistics(small, [workload.data.train_rows(piece)[0] for piece in pieces])
    sums = evaluation.score(workload.task, small, *workload.data.test_rows(scenario.test_rows))
    return workload.task.primary_of(sums), sums.mean_loss


def expected_mask(scenario: Scenario, before: ServerState, width: float, rule: str) -> Mask:
    plan = scenario.workload.plan
    if rule == "first":
        return keep_top(plan, first_channels(plan), width)
    if rule == "norms":
        return keep_top(plan, l1_norms(plan, before.params), width)
    if rule == "weights":
        weights = {key: value.abs() for key, value in before.params.items() if value.dim() > 1}
        number = num_kept(sum(value.numel() for value in weights.values()), width)
        return Mask(np.ones(plan.num_units, dtype=np.bool_), elements.pack(elements.keep_largest(weights, number)))
    kept = [  # a window that begins at the number of rounds before and wraps
        np.isin(np.arange(group.size), (np.arange(num_kept(group.size, width)) + before.round) % group.size)
        for group in plan.groups
    ]
    return Mask(np.concatenate(kept))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("heterofl", "first"),
        ("fjord", "first"),
        ("fedrolex", "window"),
        ("magnitude", "norms"),
        ("dapperfl", "norms"),
        ("fedmp", "norms"),
        ("fiarse", "weights"),
    ],
)
def test_a_ranked_width_is_that_of_the_last_round_scored_as_a_model_of_its_own(method: str, rule: str) -> None:
    scenario = build_scenario(settings_of(method, *SHORT, *NORMED))
    states, reports = states_of(scenario)
    for index, report in enumerate(reports):
        assert [each.width for each in report.widths] == [1.0, 0.5, 0.25]
        whole, *narrower = report.widths
        assert (whole.primary, whole.loss) == (report.score.primary, report.score.loss)
        for each in narrower:
            mask = expected_mask(scenario, states[index], each.width, rule)
            own = scored(scenario, states[index + 1], mask)
            assert each.masks == 1
            assert (each.primary, each.loss) == pytest.approx(own, rel=1e-6)
    assert states[-1].totals.widths == reports[-1].widths


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "feddropout", "ca-hfp"])  # ca-hfp's first rounds are random, too
def test_random_masks_are_averaged_over_five_draws_of_the_round(method: str) -> None:
    scenario = build_scenario(settings_of(method, *SHORT))
    states, reports = states_of(scenario)
    masks = masks_at(scenario, states[1], 0.5)
    assert len(masks) == len(masks.distinct) == DRAWS
    own = [scored(scenario, states[2], mask) for mask in masks]
    half = reports[1].widths[1]
    assert half.masks == DRAWS
    assert (half.primary, half.loss) == pytest.approx(tuple(np.mean(own, axis=0)), rel=1e-6)
    assert not any(np.array_equal(mask.kept, masks_at(scenario, states[0], 0.5)[0].kept) for mask in masks)
    again = masks_at(scenario, states[1], 0.5)
    assert np.array_equal(again.kept, masks.kept)


@pytest.mark.slow
def test_masks_of_a_cohort_are_spread_over_five_equal_clients() -> None:
    scenario = build_scenario(
        settings_of("ca-hfp", *SHORT, "rounds=3", "method.warmup_rounds=1", "method.mask=coverage")
    )
    states, reports = states_of(scenario)
    masks = masks_at(scenario, states[2], 0.5)
    assert len(masks) == DRAWS
    assert reports[2].widths[1].masks == len(masks.distinct) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["fedavg", "fedprox", "prunefl", "feddst", "fedtiny", "fedmef", "fedrts", "autoflip"]
)
def test_methods_without_masks_by_width_are_scored_whole_and_name_what_is_left_out(method: str, capsys) -> None:
    scenario = build_scenario(settings_of(method, *QUICK, "rounds=2", "evaluation.widths=[0.5, 1.0]"))
    assert f"evaluation.widths: 0.5 cannot be scored, since method.name='{method}'" in capsys.readouterr().err
    assert scenario.widths == (1.0,)
    assert build_scenario(settings_of(method, *QUICK)).widths == (1.0,)
    assert not METHODS[method].cuts_by_width


@pytest.mark.slow
def test_widths_of_the_tiers_are_scored_once_at_the_end_also_where_an_accuracy_ends_the_run() -> None:
    scenario = build_scenario(settings_of("heterofl", *QUICK, "stop.accuracy=0.01", "data.validation_share=0.1"))
    assert scenario.widths == (1.0, 0.5, 0.25)
    _, reports = states_of(scenario)
    assert [len(report.widths) for report in reports] == [3]
    columns = records.round_columns(reports[0])
    assert columns["width_accuracy/0.50"] == reports[0].widths[1].primary
    assert columns["width_validation_accuracy/0.50"] == reports[0].widths[1].validation_primary
    assert columns["width_validation_accuracy/1.00"] == reports[0].validation.primary
    _, unstopped = states_of(build_scenario(settings_of("heterofl", *QUICK)))
    assert [len(report.widths) for report in unstopped] == [0, 0, 0, 3]
    assert all(report.widths[0].validation_primary is None for report in unstopped[-1:])


def test_a_method_that_chooses_widths_is_scored_at_those_of_the_tiers() -> None:
    scenario = build_scenario(settings_of("fedmp", *QUICK, "rounds=1"))
    assert scenario.widths == build_scenario(settings_of("magnitude", *QUICK)).widths
    _, (report,) = states_of(scenario)
    assert [each.width for each in report.widths] == list(scenario.widths)
    assert len(scenario.widths) > 2


def test_many_budgets_have_eight_widths_with_the_extremes() -> None:
    speeds = "flops_per_s: 1.0e+9, down_bytes_per_s: 1.0e+6, up_bytes_per_s: 1.0e+6"
    devices = ", ".join(f"{{name: a{index % 4}, keep_ratio: {index / 24}, {speeds}}}" for index in range(1, 25))
    settings = settings_of(
        "magnitude",
        "population.tiers=null",
        f"population.devices={{profiles: [{devices}]}}",
        "population.clients=24",
        "rounds=1",
    )
    widths = default_widths(build_scenario(settings))
    assert len(widths) == MOST
    assert (widths[0], widths[-1]) == (1.0, pytest.approx(1 / 24))
    assert list(widths) == sorted(set(widths), reverse=True)


def test_scoring_changes_nothing_that_is_trained() -> None:
    with_them, without = (
        states_of(build_scenario(settings_of("heterofl", *QUICK, *NORMED, "rounds=2", f"evaluation.widths={widths}")))
        for widths in ("[0.25, 0.5]", "[]")
    )
    for key, tensor in with_them[0][-1].params.items():
        assert torch.equal(tensor, without[0][-1].params[key])
    assert without[0][-1].totals.widths == ()
