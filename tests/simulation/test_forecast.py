import json
from pathlib import Path

import numpy as np
import pytest

from raysim.executors.in_process import InProcessExecutor
from raysim.methods.table import METHODS
from raysim.simulation.build import build_scenario
from raysim.simulation.forecast import forecast
from raysim.simulation.loop import run_rounds
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, Storage, Totals, summary_of
from raysim.simulation.transition import initial_state
from tests.clocked import QUICK
from tests.conftest import settings_of, tiny_settings

MORE = "selection.clients_per_round=5"


def played(scenario: Scenario, folder: Path) -> list[RoundReport]:
    executor = InProcessExecutor(scenario.workload)
    rounds = run_rounds(scenario, initial_state(scenario), executor, Storage(folder, 1, 1))
    return [report for _, report in rounds]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [(name,) for name in METHODS] + [("ca-hfp", "method.estimator=variation", "method.warmup_rounds=1")],
    ids="-".join,
)
def test_the_forecast_is_what_a_run_spends(tmp_path, overrides):
    scenario = build_scenario(settings_of(*overrides, MORE))
    predicted = forecast(scenario)
    totals = played(scenario, tmp_path)[-1].totals
    differing = [name for name, spent in summary_of(totals).items() if predicted[name] != spent]
    assert bool(differing) == (not predicted["exact"]), differing
    assert min(predicted["simulated_s"], predicted["up_bytes"], predicted["train_flops"]) > 0


NORMED = ("model={name: 'tests.oracles:norm_net', options: {channels: [3, 4]}}", *QUICK, "rounds=3")


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("overrides", [("heterofl",), ("fedrolex",), ("fedavg", "method.normalization=static")])
def test_the_forecast_counts_the_statistics_that_are_estimated_before_each_score(tmp_path, overrides, every):
    scenario = build_scenario(settings_of(*overrides, *NORMED, f"evaluation.every={every}"))
    predicted = forecast(scenario)
    spent = summary_of(played(scenario, tmp_path)[-1].totals)
    assert {name: predicted[name] for name in spent} == spent
    assert predicted["exact"]
    scored, forward = {1: 3, 2: 2}[every], scenario.costs.forward_flops
    assert spent["statistics_flops"] == scored * len(scenario.statistics_rows) * forward > 0


@pytest.mark.slow
def test_the_rows_of_the_tiers_are_what_their_clients_spend(tmp_path):
    scenario = build_scenario(tiny_settings(MORE))
    reports = played(scenario, tmp_path)
    for row in forecast(scenario)["tiers"]:
        members = [report.clients["tier"] == row["tier"] for report in reports]
        for name in ("download_s", "compute_s", "upload_s", "total_s"):
            values = np.concatenate([report.clients[name][own] for report, own in zip(reports, members, strict=True)])
            assert row[name] == (pytest.approx(values.mean()) if len(values) else None)
        for name in ("down_bytes", "up_bytes", "pruning_ratio", "keep_ratio"):
            values = np.concatenate([report.clients[name][own] for report, own in zip(reports, members, strict=True)])
            assert (values == row[name]).all(), name


def test_the_forecast_counts_the_population(tiny_scenario):
    predicted = forecast(tiny_scenario)
    assert (predicted["clients"], predicted["cohort_size"], predicted["rounds"]) == (6, 3, 2)
    assert predicted["channels"] == 4 + 8 + 16
    assert predicted["channel_groups"] == 3
    assert [row["clients"] for row in predicted["tiers"]] == [1, 2, 2, 1]
    assert [row["limited_by"] for row in predicted["tiers"]] == ["tier", "tier", "tier", "nothing"]
    examples = predicted["examples_per_client"]
    assert examples["min"] <= examples["median"] <= examples["max"] <= 1437


def test_the_parameters_of_the_tiers_are_counted_by_hand(tiny_scenario):
    def parameters(first: int, second: int, hidden: int) -> int:
        convolutions = first * 9 + first + second * first * 9 + second
        return convolutions + hidden * second * 16 + hidden + 10 * hidden + 10

    rows = forecast(tiny_scenario)["tiers"]
    widths = [(1, 2, 4), (2, 4, 8), (3, 6, 12), (4, 8, 16)]
    assert [row["parameters"] for row in rows] == [parameters(*width) for width in widths]
    assert [row["down_bytes"] for row in rows] == [
        4 * parameters(*width) + (0 if width == widths[-1] else 4)  # 28 channels: 4 bytes of mask
        for width in widths
    ]
    assert [row["pruning_ratio"] for row in rows] == [
        pytest.approx(1 - parameters(*width) / parameters(*widths[-1])) for width in widths
    ]


def test_fedavg_spends_all_of_fedavg():
    predicted = forecast(build_scenario(tiny_settings("method.name=fedavg")))
    for name in ("bytes", "flops", "simulated"):
        assert predicted[f"{name}_percent_of_fedavg"] == 100
    assert predicted["pruning_ratio_mean"] == 0


def test_a_forecast_can_be_written_as_json(tiny_scenario):
    predicted = forecast(tiny_scenario)
    assert json.loads(json.dumps(predicted, allow_nan=False)) == predicted


def test_nothing_spent_has_a_summary():
    summary = summary_of(Totals())
    assert summary.pop("fates") == {}
    assert set(summary.values()) == {0, None}
