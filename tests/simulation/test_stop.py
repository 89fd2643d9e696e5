"""Rules that end a run early, the report of targets, and the costs of a run."""

import doctest
import json
from dataclasses import replace

import numpy as np
import pytest

from raysim.clock.outcomes import UNFINISHED
from raysim.experiment import cost as price
from raysim.experiment.cost import Prices, costs_of
from raysim.simulation.forecast import forecast
from raysim.simulation.scenario import StopRules
from raysim.simulation.state import Reached, RoundReport, Totals, targets_of
from tests.cli.test_main import arguments, left_with
from tests.clocked import FRAIL, MODES, clocked, played
from tests.stores import store_in

SPENT = {
    "simulated_s": lambda totals: totals.simulated_s,
    "bytes": lambda totals: totals.down_bytes + totals.up_bytes,
    "energy_j": lambda totals: totals.energy_j,
}


def scored_rounds(reports: list[RoundReport]) -> list[int]:
    return [report.round for report in reports if report.score is not None]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("quantity", SPENT)
def test_a_run_ends_with_the_round_in_which_enough_is_spent(quantity: str, mode: str) -> None:
    scenario = replace(clocked("magnitude", mode, *FRAIL), score_every=10)
    _, whole = played(scenario)
    assert scored_rounds(whole) == [4]
    after_two, after_three = (SPENT[quantity](whole[place].totals) for place in (1, 2))
    assert after_two < after_three
    for limit, rounds in ((after_two, 2), ((after_two + after_three) / 2, 3), (1e-9, 1)):
        stopping = replace(scenario, stop=StopRules(**{quantity: limit}))
        state, reports = played(stopping)
        assert [report.round for report in reports] == list(range(1, rounds + 1))
        assert scored_rounds(reports) == [rounds], "the last round is scored, whenever it comes"
        assert SPENT[quantity](state.totals) >= limit
        assert state.in_flight == ()
        if mode == "async":
            assert UNFINISHED in state.totals.outcomes
            assert UNFINISHED in reports[-1].clients["fate"]
        predicted = forecast(stopping)
        assert predicted["exact"]
        assert (predicted["rounds"], predicted["simulated_s"]) == (rounds, state.totals.simulated_s)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_run_ends_with_the_round_that_reaches_an_accuracy(mode: str) -> None:
    scenario = clocked("fedavg", mode, "rounds=8", "training.learning_rate=0.5")
    _, whole = played(scenario)
    accuracies = [report.score.accuracy for report in whole]
    place = next(p for p in range(1, 8) if accuracies[p] > max(accuracies[:p]))
    stopping = replace(scenario, stop=StopRules(accuracy=accuracies[place]))
    state, reports = played(stopping)
    assert [report.round for report in reports] == list(range(1, place + 2))
    assert state.totals.accuracy == accuracies[place]
    assert state.in_flight == ()
    assert not forecast(stopping)["exact"], "when it is reached depends on what is learned"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "over-selection", "async"])
def test_a_target_tells_what_had_been_spent_when_it_was_first_reached(mode: str) -> None:
    scenario = clocked("fedavg", mode, *FRAIL, "rounds=8", "training.learning_rate=0.05")
    _, plain = played(scenario)
    scores = [report.score.accuracy for report in plain]
    targets = (max(scores), 0.001, sorted(scores)[3], 1.0)
    assert max(scores) < 1
    state, reports = played(replace(scenario, targets=targets))
    told = targets_of(state.totals, targets)
    assert [entry["accuracy"] for entry in told] == list(targets)
    for target, entry in zip(targets[:3], told[:3], strict=True):
        first = next(place for place, score in enumerate(scores) if score >= target)
        rows = [report.clients for report in reports[: first + 1]]
        finished = [columns["fate"] != UNFINISHED for columns in rows]
        assert entry["round"] == first + 1
        assert entry["simulated_s"] == reports[first].totals.simulated_s
        for name, columns in (("bytes", ("down_bytes", "up_bytes")), ("train_flops", ("train_flops",))):
            assert entry[name] == sum(
                int(each[column][own].sum()) for each, own in zip(rows, finished, strict=True) for column in columns
            )
        joules = sum(float(each["energy_j"][own].sum()) for each, own in zip(rows, finished, strict=True))
        assert entry["energy_j"] == pytest.approx(joules, rel=1e-12)
    assert told[3] == {"accuracy": 1.0, **dict.fromkeys(("round", "simulated_s", "bytes", "train_flops", "energy_j"))}
    json.dumps(told, allow_nan=False)


def test_targets_come_in_the_order_they_were_asked_for() -> None:
    reached = (Reached(0.3, 2, 1.0, 2, 3, 4.0), Reached(0.1, 1, 0.5, 1, 1, 1.0))
    told = targets_of(Totals(reached=reached), (0.1, 0.9, 0.3))
    assert [(entry["accuracy"], entry["round"]) for entry in told] == [(0.1, 1), (0.9, None), (0.3, 2)]


def test_the_examples_of_prices_hold() -> None:
    assert doctest.testmod(price) == (0, 1)


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (Prices(), {"device_kwh": 2.0}),
        (Prices(price_per_kwh=0.25), {"device_kwh": 2.0, "device_price": 0.5}),
        (Prices(carbon_g_per_kwh=300), {"device_kwh": 2.0, "device_co2_g": 600.0}),
        (Prices(cluster_watts=200), {"device_kwh": 2.0, "cluster_kwh": 0.1}),
        (Prices(cluster_price_per_hour=3.0), {"device_kwh": 2.0, "cluster_price": 1.5}),
        (
            Prices(price_per_kwh=0.25, carbon_g_per_kwh=300, cluster_watts=200),
            {"device_kwh": 2.0, "device_price": 0.5, "device_co2_g": 600.0, "cluster_kwh": 0.1,
             "cluster_price": 0.025, "cluster_co2_g": 30.0},
        ),
        (  # the price of an hour holds its energy
            Prices(price_per_kwh=0.25, cluster_watts=200, cluster_price_per_hour=3.0),
            {"device_kwh": 2.0, "device_price": 0.5, "cluster_kwh": 0.1, "cluster_price": 1.5},
        ),
        (Prices(price_per_kwh=0.0), {"device_kwh": 2.0, "device_price": 0.0}),
    ],
)  # fmt: skip
def test_money_and_co2_of_2_kwh_on_devices_and_half_an_hour_of_a_cluster(prices, expected) -> None:
    assert costs_of(prices, 7.2e6, 1800.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_a_runs_summary_tells_costs_fates_targets_and_why_it_was_short(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    overrides = [
        "rounds=5", "stop.simulated_s=0.1", "evaluation.targets=[0.01, 1.0]", "costs.price_per_kwh=0.4",
        "costs.carbon_g_per_kwh=380", "costs.cluster_watts=150", "clock.mode=async", "clock.buffer_size=2",
        "data.max_train_examples=150", "evaluation.max_examples=50", f"tracking.uri={store_in(tmp_path, 'x.db')}",
        *(f"population.tiers.{tier}.{figure}" for tier in range(4)
          for figure in ("train_watts=4.0", "radio_j_per_byte=1e-6", "failure_rate=0.3")),
    ]  # fmt: skip
    assert left_with(*arguments(*overrides), "--output", str(folder)) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] < 5
    assert summary["simulated_s"] >= 0.1
    assert [entry["round"] for entry in summary["targets"]][1] is None
    assert sum(summary["fates"].values()) > 2 * summary["rounds"]
    assert summary["energy_j"] > 0
    assert summary["empty_rounds"] == 0
    costs = summary["costs"]
    assert costs["device_kwh"] == pytest.approx(summary["energy_j"] / 3.6e6)
    assert costs["device_price"] == pytest.approx(0.4 * costs["device_kwh"])
    assert costs["device_co2_g"] == pytest.approx(380 * costs["device_kwh"])
    assert costs["cluster_kwh"] == pytest.approx(150 * summary["wall_s"] / 3.6e6)
    shown = capsys.readouterr()
    told = shown.out + shown.err
    for words in ("energy of the devices", "work that did not count", "not reached"):
        assert words in told
    import pyarrow.parquet as pq

    clients, rounds = (pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("clients", "rounds"))
    assert len(clients["client"]) == sum(summary["fates"].values())
    assert np.sum(clients["energy_j"]) == pytest.approx(summary["energy_j"])
    assert rounds["simulated_s"][-1] == summary["simulated_s"]
