import functools
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from raysim.clock import outcomes
from raysim.config.clock import ClockSettings
from raysim.core import retry
from raysim.core.errors import SettingError, TrackingLostError
from raysim.executors.in_process import InProcessExecutor
from raysim.methods.table import METHODS
from raysim.simulation import metrics
from raysim.simulation.build import build_scenario
from raysim.simulation.metrics import metrics_of
from raysim.simulation.records import Logged, Point
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport
from raysim.simulation.transition import initial_state
from raysim.tracking import background, mlflow_writer
from raysim.tracking.client_runs import READ, ClientRun, ClientRuns
from raysim.tracking.curves import EVERY_SECOND, MAIN, RunCurves, over_time
from raysim.tracking.mlflow_writer import CLIENT, MlflowWriter, resolve_uri
from tests.clocked import played, with_figures
from tests.conftest import settings_of, tiny_settings
from tests.stores import store_in

TIER = "{{name: t{0}, share: {1}, keep_ratio: 0.5, flops_per_s: {2}, down_bytes_per_s: 1e+4, up_bytes_per_s: 1e+4}}"
TWELVE = ", ".join(TIER.format(k, 1 / 12, f"{(k + 3) % 12 + 1}e+6") for k in range(12))
"""As many tiers as are allowed; t9 is the slowest, t8 the fastest."""


OWN = {outcomes.LATE: "deadline", outcomes.SURPLUS: "over-selection", outcomes.UNFINISHED: "async"}
"""Fates that belong to one clock mode; any other may be met in all of them."""


def names_in_mlflow(scenario: Scenario, *reports: RoundReport) -> set[str]:
    """All metric names of a run, as its records tell them to MLflow."""
    without = metrics.left_out_of(scenario)
    rounds = [
        Logged(report.round, 1000 * report.round, 0.0, metrics.for_mlflow(metrics_of(report), without))
        for report in reports
    ]
    over, newest = over_time([], rounds)
    return {point.key for each in rounds for point in each.points} | {point.key for point in (*over, *newest)}


@pytest.mark.slow
def test_metrics_are_floats_and_faults_are_told_only_where_there_are_any() -> None:
    settings = tiny_settings(
        f"population.tiers=[{TWELVE}]",
        "population.clients=24",
        "selection.clients_per_round=24",
    )
    scenario = build_scenario(settings)
    executor = InProcessExecutor(scenario.workload)
    _, report = run_round(scenario, initial_state(scenario), executor)
    found = metrics_of(report)
    assert sum(key.startswith("pruning_ratio/tier/") for key in found) == 12
    assert all(isinstance(value, float) for value in found.values())
    assert "faults/retries" not in found
    assert metrics_of(replace(report, incidents=("an actor was lost", "another"))) == found | {"faults/retries": 2}
    shown = {name for name in names_in_mlflow(scenario, report) if "/tier/" in name}
    assert shown == {
        f"{group.replace('primary', 'accuracy')}{tier}"
        for group in metrics.OF_TIER
        for tier in ("t9", "t8", "t0", "t1")
    }
    assert not any(name.startswith("energy/") for name in found), "these devices have no watts"
    _, warm = run_round(with_figures(scenario, train_watts=2.0), initial_state(scenario), executor)
    assert metrics_of(warm)["energy/total_j"] == metrics_of(warm)["energy/round_j"] == warm.totals.energy_j > 0


def worst(report: RoundReport, mode: str) -> RoundReport:
    """A round in which all that a clock mode can do to clients has happened, and actors were lost."""
    others = [outcome for outcome in outcomes.ALL if outcome != outcomes.COUNTED and OWN.get(outcome, mode) == mode]
    size, is_asynchronous = len(report.clients["fate"]), mode == "async"
    fates = np.full(size, outcomes.COUNTED, dtype=outcomes.DTYPE)
    fates[: 2 * len(others) : 2] = others
    columns = {"fate": fates, "accuracy": np.full(size, 0.5)}
    if is_asynchronous:
        columns["started_round"] = np.full(size, report.round - 1)
    totals = replace(report.totals, outcomes=dict.fromkeys((outcomes.COUNTED, *others), 1))
    return replace(
        report,
        clients=report.clients | columns,
        totals=totals,
        incidents=("an actor was lost",),
        is_asynchronous=is_asynchronous,
        diagnostics={} if is_asynchronous else report.diagnostics,
    )


@functools.cache
def of_frail(method: str) -> tuple[Scenario, RoundReport]:
    """A method's second round on twelve tiers of devices with batteries, diagnosed."""
    estimator = ("method.estimator=variation", "method.warmup_rounds=0")
    given = estimator if "estimator" in METHODS[method].reads else ()
    scenario = build_scenario(
        settings_of(
            method,
            *given,
            f"population.tiers=[{TWELVE}]",
            "population.clients=24",
            "selection.clients_per_round=24",
            "data.max_train_examples=300",
            "evaluation.max_examples=40",
            "diagnostics.every=1",
            "evaluation.targets=[0.01]",
        )
    )
    scenario = with_figures(scenario, train_watts=2.0, battery_j=1e9)
    return scenario, played(scenario, 2)[1][-1]


def most_names(method: str) -> int:
    """The most names that a run of a method can have in MLflow, in whichever clock mode, diagnosed or not."""
    scenario, report = of_frail(method)
    assert report.diagnostics
    assert report.score is not None
    undiagnosed = replace(scenario, diagnose_every=0), replace(report, diagnostics={})
    counts = []
    for mode in get_args(ClockSettings.model_fields["mode"].annotation):
        for scene, played_round in ((scenario, report), undiagnosed)[mode == "async" :]:
            ugly = worst(played_round, mode)
            shown = names_in_mlflow(scene, played_round, ugly)
            assert {f"diagnostics/{name}" for name in ugly.diagnostics} <= shown
            assert {
                "accuracy/global",
                "fairness/worst_tier_accuracy",
                "time/accuracy/global",
                "client_s/p90",
                "energy/total_j",
                "faults/retries",
                "clients/away",
                "clients/infeasible",
            } <= shown
            counts.append(len(shown))
    return max(counts)


FEW_METHODS = ("fedavg", "autoflip", "ca-hfp", "scaffold")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in FEW_METHODS else pytest.mark.long) for name in METHODS]
)
def test_no_run_of_any_method_in_any_clock_mode_has_more_than_sixty_names(method):
    assert 50 <= most_names(method) <= metrics.MOST == 60


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "more"), [("TIERS", 6), ("TIERS_DIAGNOSED", 3), ("OF_ONE_ROUND", ())])
def test_more_curves_of_tiers_or_of_rounds_would_be_too_many(setting, more, monkeypatch):
    """What is above can fail."""
    monkeypatch.setattr(metrics, setting, more)
    assert most_names("ca-hfp") > metrics.MOST


def test_the_fates_of_a_round_are_counted_each_once_and_the_ways_to_be_away_together():
    _, report = of_frail("ca-hfp")
    for mode in get_args(ClockSettings.model_fields["mode"].annotation):
        found = metrics_of(worst(report, mode))
        assert found["clients/away"] == 4
        counts = {name: count for name, count in found.items() if name.startswith("clients/") and "mean" not in name}
        assert {count for name, count in counts.items() if name not in ("clients/away", "clients/counted")} == {1}
        assert sum(counts.values()) == 24
        assert (found.get("clients/staleness_mean") == 1) == (mode == "async")


@pytest.mark.slow
def test_percentiles_tiers_and_fairness_are_those_of_the_clients_counted_one_by_one():
    scenario = build_scenario(
        tiny_settings(
            f"population.tiers=[{TWELVE}]",
            "population.clients=60",
            "selection.clients_per_round=40",
            "data.max_train_examples=400",
            "evaluation.client_share=0.7",
        )
    )
    _, report = run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    drawn = np.where(np.isnan(report.clients["accuracy"]), np.nan, np.random.default_rng(0).uniform(size=40))
    report = replace(report, clients=report.clients | {"accuracy": drawn})
    clients, devices = report.clients, scenario.workload.population.devices
    rows = [{name: column[place] for name, column in clients.items()} for place in range(40)]
    speeds = {client: devices.profile(client).flops_per_s for client in clients["client"].tolist()}
    scored = [row for row in rows if not np.isnan(row["accuracy"])]
    found = metrics_of(report)
    assert 20 < len(scored) < 35
    ranked = sorted(scored, key=lambda row: (speeds[row["client"]], -row["total_s"], row["client"]))
    slowest = [row["accuracy"] for row in ranked[: -(-len(scored) // 10)]]
    assert len(slowest) == 3
    assert found["fairness/slowest_decile_accuracy"] == pytest.approx(np.mean(slowest))
    alike = metrics_of(replace(report, clients=clients | {"flops_per_s": np.ones(40)}))
    longest = sorted(scored, key=lambda row: (-row["total_s"], row["client"]))[:3]
    expected = np.mean([row["accuracy"] for row in longest])
    assert alike["fairness/slowest_decile_accuracy"] == pytest.approx(expected) != np.mean(slowest)
    by_tier = {
        tier: np.mean([row["accuracy"] for row in scored if row["tier"] == tier])
        for tier in {row["tier"] for row in scored}
    }
    assert found["fairness/worst_tier_accuracy"] == pytest.approx(min(by_tier.values()))
    for tier, mean in by_tier.items():
        assert found[f"accuracy/tier/{tier}"] == pytest.approx(mean)
        seconds = [row["lasts_s"] for row in rows if row["tier"] == tier]
        assert found[f"client_s/tier/{tier}"] == pytest.approx(np.mean(seconds))
    for share, of in (("p10", 10), ("p50", 50), ("p90", 90)):
        assert found[f"client_s/{share}"] == pytest.approx(np.percentile(clients["lasts_s"], of))
        assert found[f"pruning_ratio/{share}"] == pytest.approx(np.percentile(clients["pruning_ratio"], of))
        submodels = np.percentile([row["accuracy"] for row in scored], of)
        assert found[f"accuracy/submodel_{share}"] == pytest.approx(submodels)


def test_without_scored_submodels_nothing_is_said_of_them():
    scenario = build_scenario(tiny_settings("evaluation.client_share=0.0"))
    _, report = run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    assert not any("submodel" in name or "fairness" in name or "accuracy/tier" in name for name in metrics_of(report))


def rounds_of(seconds: list[float], scored: set[int]) -> list[Logged]:
    """Rounds that end at simulated times; some of them score the global model."""
    return [
        Logged(
            round,
            1000 * round,
            0.0,
            {"clock/simulated_s": second, "traffic/total_bytes": 10.0 * round}
            | ({"accuracy/global": round / 100} if round in scored else {}),
        )
        for round, second in enumerate(seconds, 1)
    ]


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3), (1, 2, 3, 4, 5, 6), (4,)])
def test_a_simulated_second_has_the_last_value_of_its_rounds_wherever_a_run_is_stopped(cuts):
    """Each part is told by a run that went on and knows what MLflow does; a second that goes on is not told of."""
    rounds = rounds_of([0.4, 1.1, 1.5, 1.9, 4.0, 4.0, 6.2], scored={2, 3, 6})
    told: list[Point] = []
    known = 0
    for last in (*cuts, 7):
        seconds = [point.step for point in told if point.key == EVERY_SECOND]
        curves = RunCurves(lambda round: rounds[round - 1], told.extend, known, max(seconds, default=-1))
        curves.flush(last, hurry=False)
        assert curves.last_logged == last
        known = last
    curves.finish()
    curves.finish()
    by_round = [point for point in told if not point.key.startswith("time/")]
    assert by_round == [point for round in rounds for point in round.points]
    over_time = {key: [point for point in told if point.key == f"time/{key}"] for key in MAIN}
    assert [(point.step, point.value) for point in over_time["traffic/total_bytes"]] == [
        (0, 10.0),
        (1, 40.0),
        (4, 60.0),
        (6, 70.0),
    ]
    assert [(point.step, point.value) for point in over_time["accuracy/global"]] == [(1, 0.03), (4, 0.06)]
    assert [point.timestamp_ms for point in over_time["accuracy/global"]] == [3000, 6000]


def test_a_call_has_whole_rounds_and_at_most_a_thousand_points():
    rounds = rounds_of([float(round) for round in range(1, 501)], scored=set(range(1, 501)))
    calls: list[list[Point]] = []
    curves = RunCurves(lambda round: rounds[round - 1], calls.append)
    while curves.last_logged < 500:
        curves.flush(500, hurry=False)
    curves.finish()
    assert max(map(len, calls)) <= 1000
    assert len(calls) == 4
    assert len({(point.key, point.step) for call in calls for point in call}) == sum(map(len, calls)) == 500 * 5


def test_rounds_that_a_checkpoint_covers_are_told_without_waiting_for_the_end(monkeypatch):
    monkeypatch.setattr(background, "COLLECT_S", 0.01)
    rounds, told = rounds_of([1.0, 2.0, 3.0], scored=set()), []
    log = background.BackgroundLogger([RunCurves(lambda round: rounds[round - 1], told.extend)])
    log.cover(2)
    until = time.monotonic() + 60
    while not any(point.step == 2 for point in told):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert {point.step for point in told if point.key == "clock/simulated_s"} == {1, 2}
    log.close(60)
    assert {point.step for point in told if point.key == EVERY_SECOND} == {1}, "the second may have more rounds"


@pytest.mark.slow
def test_the_end_of_the_curves_that_cannot_be_told_is_said(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)

    def send(points) -> None:
        if is_away:
            raise TrackingLostError("gone")
        told.extend(points)

    told: list[Point] = []
    rounds, is_away = rounds_of([1.0, 1.5], scored=set()), False
    log = background.BackgroundLogger([RunCurves(lambda round: rounds[round - 1], send)])
    log.cover(2)
    log.close(60)
    is_away = True
    log = background.BackgroundLogger([RunCurves(lambda round: rounds[round - 1], send, 2)])
    with pytest.raises(TrackingLostError, match="the end of the curves could not be logged: gone"):
        log.close(0.5, is_over=True)
    is_away = False
    log = background.BackgroundLogger([RunCurves(lambda round: rounds[round - 1], send, 2)])
    log.close(60, is_over=True)
    assert [point.value for point in told if point.key == EVERY_SECOND] == [20.0]


@pytest.mark.slow
def test_the_end_is_waited_for_as_long_as_something_goes_through() -> None:
    def slowly(points) -> None:
        time.sleep(0.6)
        told.extend(points)

    told: list[Point] = []
    rounds = rounds_of([float(round) for round in range(1, 501)], scored=set(range(1, 501)))
    log = background.BackgroundLogger([RunCurves(lambda round: rounds[round - 1], slowly)])
    log.cover(500)
    with pytest.raises(TrackingLostError, match=r"\d+ rounds could not be logged"):
        log.close(1.5, at_most_s=0.7)
    known = max((point.step for point in told if point.key == "clock/simulated_s"), default=0)
    curves = RunCurves(lambda round: rounds[round - 1], slowly, known, known)
    log = background.BackgroundLogger([curves])
    log.cover(500)
    log.close(1.5, is_over=True)
    assert curves.num_calls >= 3, "calls of 0.6 s"
    assert {point.step for point in told if point.key == "clock/simulated_s"} == set(range(1, 501))


@pytest.mark.parametrize("uri", ["mlruns", "file:///somewhere", "ftp://host/x", "./runs"])
def test_stores_that_mlflow_refuses_are_refused_first(uri: str) -> None:
    with pytest.raises(SettingError, match=r"tracking\.uri="):
        resolve_uri(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql+psycopg2://me:hush@host:5432/runs", "https://me:hu/sh@host:5000", "http://me:99hush@host:5000",
        "postgresql://host/runs?password=hush", "mysql+pymysql://me@host/runs?passwd=hush",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3Dhush", "ftp://me:hush@host/x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["setting", "environment"])
def test_a_store_with_a_secret_is_refused_and_the_secret_not_shown(uri: str, by: str, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri if by == "environment" else "")
    with pytest.raises(SettingError, match=r"tracking\.uri=") as refused:
        resolve_uri(uri if by == "setting" else None)
    assert "hu" not in str(refused.value)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000/a@b", "postgresql+psycopg://me@host:5432/runs?sslkey=me.pem"])
def test_a_store_without_a_secret_is_taken(uri: str) -> None:
    assert resolve_uri(uri) == uri


def test_a_postgresql_without_a_driver_gets_one_that_is_installed(monkeypatch) -> None:
    """That of `raysim[server]`; SQLAlchemy would look for psycopg2 up to 2.0, and for psycopg since."""
    assert resolve_uri("postgresql://me@host:5432/runs") == "postgresql+psycopg2://me@host:5432/runs"
    monkeypatch.setattr(mlflow_writer, "find_spec", {"psycopg": "found"}.get)
    assert resolve_uri("postgresql://me@host:5432/runs") == "postgresql+psycopg://me@host:5432/runs"
    monkeypatch.setattr(mlflow_writer, "find_spec", {}.get)
    with pytest.raises(SettingError, match=r"needs a driver of PostgreSQL's.*pip install 'raysim\[server\]'"):
        resolve_uri("postgresql://me@host:5432/runs")


def test_the_default_store_is_sqlite_unless_the_environment_says_otherwise(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri(None) == "http://127.0.0.1:5000"
    assert resolve_uri("sqlite:///other.db") == f"sqlite:///{tmp_path}/other.db"


@pytest.mark.slow
def test_an_experiment_that_was_deleted_is_told_with_the_way_back(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MlflowWriter(uri, "digits")
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(SettingError, match=f"^experiment='digits' was deleted .* {tracker.experiment_id}`$"):
        MlflowWriter(uri, "digits")


def test_a_store_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_text("this is no database, and long enough to be looked at as one" * 10)
    with pytest.raises(SettingError, match=r"broken.db.*cannot be opened"):
        MlflowWriter(f"sqlite:///{tmp_path}/broken.db", "x")


@pytest.mark.slow
def test_artifacts_of_a_database_without_files_lie_beside_the_output(tmp_path: Path, monkeypatch) -> None:
    """A database is told by its scheme; an SQLite file by another spelling stands for one on a server."""
    uri = f"sqlite+pysqlite:///{tmp_path}/there.db"
    for beside, expected in (
        (f"{tmp_path}/runs", f"{tmp_path}/runs/artifacts/one"),
        ("s3://bucket/runs?region=eu-west-1", "s3://bucket/runs/artifacts/two"),
    ):
        name = expected.rpartition("/")[2]
        tracker = MlflowWriter(uri, name, beside=beside)
        assert MlflowClient(uri).get_experiment(tracker.experiment_id).artifact_location == expected


class _LeftMeanwhile(MlflowWriter):
    """After its second run of a client, the run they belong to is given up."""

    runs: ClientRuns

    def child(self, name: str, tags: Mapping[str, str]) -> str:
        made = super().child(name, tags)
        if name == "client 1":
            self.runs.abort("KILLED")
        return made


@pytest.mark.slow
def test_a_run_that_is_given_up_makes_no_more_runs_of_clients(tmp_path: Path) -> None:
    tracker = _LeftMeanwhile(store_in(tmp_path), "left")
    tracker.create("parent", {})
    clients = [ClientRun(place, f"client {place}", {CLIENT: str(place)}) for place in range(5)]
    tracker.runs = ClientRuns(tracker, lambda _: (0, {name: np.zeros(5) for name in READ}), clients)
    tracker.runs.flush(1, hurry=True)
    assert sorted(tracker.clients()) == [0, 1]
    assert MlflowClient(tracker.uri).get_run(tracker.clients()[0]).info.status == "KILLED"
