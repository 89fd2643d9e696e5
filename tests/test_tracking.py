from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import settings_of, tiny_settings
from mlflow.tracking import MlflowClient

from raysim import simulation
from raysim.errors import SettingError
from raysim.executors import InProcessExecutor
from raysim.fates import COUNTED, FATES, LATE, SURPLUS, UNFINISHED
from raysim.metrics import metrics_of
from raysim.rounds import initial_state, run_round
from raysim.tracking import MlflowTracker, resolve_uri


def test_metrics_stay_under_sixty_with_the_most_tiers_allowed() -> None:
    tier = "{{name: t{0}, share: {1}, keep_ratio: 0.5, flops_per_s: 1.0, down_bytes_per_s: 1.0, up_bytes_per_s: 1.0}}"
    tiers = ", ".join(tier.format(k, 1 / 12) for k in range(12))
    settings = tiny_settings(
        f"population.tiers=[{tiers}]", "population.clients=24", "selection.clients_per_round=24",
    )  # fmt: skip
    scenario = simulation.build(settings)
    _, report = run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    metrics = metrics_of(report)
    assert sum(key.startswith("pruning_ratio/tier/") for key in metrics) == 12
    assert len(metrics) <= 60
    assert all(isinstance(value, float) for value in metrics.values())
    assert "faults/retries" not in metrics
    assert metrics_of(replace(report, incidents=("an actor was lost", "another"))) == metrics | {"faults/retries": 2}


TIER = "{{name: t{0}, share: {1}, keep_ratio: 0.5, flops_per_s: 1.0, down_bytes_per_s: 1.0, up_bytes_per_s: 1.0}}"


@pytest.mark.parametrize(
    ("method", "way"),
    [("ca-hfp", LATE), ("ca-hfp", SURPLUS), ("autoflip", LATE), ("prunefl", LATE), ("ca-hfp", UNFINISHED)],
)
def test_metrics_stay_under_sixty_with_twelve_tiers_all_diagnostics_and_whatever_can_become_of_clients(method, way):
    """Late, surplus and unfinished belong to one clock mode each; asynchronous rounds are not diagnosed."""
    tiers = ", ".join(TIER.format(k, 1 / 12) for k in range(12))
    diagnosed = ("diagnostics.every=2",) if way != UNFINISHED else ()
    estimator = ("method.estimator=variation", "method.warmup_rounds=0") if method == "ca-hfp" else ()
    scenario = simulation.build(settings_of(
        method, *diagnosed, *estimator, f"population.tiers=[{tiers}]", "population.clients=36",
        "selection.clients_per_round=36", "data.max_train_examples=400", "evaluation.max_examples=60",
    ))  # fmt: skip
    report = state = None
    for _ in range(2):
        state, report = run_round(scenario, state or initial_state(scenario), InProcessExecutor(scenario.workload))
    others = [fate for fate in FATES if fate == way or fate not in (COUNTED, LATE, SURPLUS, UNFINISHED)]
    fates = np.array([COUNTED] * 36, dtype="<U11")
    lost = np.flatnonzero(np.arange(36) % 3 == 0)[: len(others)]
    fates[lost] = others
    started = np.where(np.arange(36) % 2 == 0, 2, 1) if way == UNFINISHED else report.clients["started_round"]
    clients = report.clients | {"fate": fates, "started_round": started}
    totals = replace(report.totals, fates=dict.fromkeys((COUNTED, *others), 1), empty_rounds=1)
    metrics = metrics_of(replace(report, clients=clients, totals=totals, is_asynchronous=way == UNFINISHED))
    assert len(metrics) <= 60
    assert bool(report.diagnostics) == bool(diagnosed)
    assert metrics["clients/away"] == 4
    assert metrics["clients/infeasible"] == 1
    assert metrics[f"clients/{way}"] == 1
    assert metrics["clients/counted"] == 30
    assert sum(value for key, value in metrics.items() if key.startswith("clients/") and "mean" not in key) == 36
    assert ("clients/staleness_mean" in metrics) == (way == UNFINISHED)


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


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000/a@b", "postgresql://me@host:5432/runs?sslkey=me.pem"])
def test_a_store_without_a_secret_is_taken(uri: str) -> None:
    assert resolve_uri(uri) == uri


def test_the_default_store_is_sqlite_unless_the_environment_says_otherwise(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri(None) == "http://127.0.0.1:5000"
    assert resolve_uri("sqlite:///other.db") == f"sqlite:///{tmp_path}/other.db"


def test_a_store_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_text("this is no database, and long enough to be looked at as one" * 10)
    with pytest.raises(SettingError, match=r"broken.db.*cannot be opened"):
        MlflowTracker(f"sqlite:///{tmp_path}/broken.db", "x")


def test_artifacts_of_a_database_without_files_lie_beside_the_output(tmp_path: Path, monkeypatch) -> None:
    """A database is told by its scheme; an SQLite file by another spelling stands for one on a server."""
    uri = f"sqlite+pysqlite:///{tmp_path}/there.db"
    for beside, expected in (
        (f"{tmp_path}/runs", f"{tmp_path}/runs/artifacts/one"),
        ("s3://bucket/runs?region=eu-west-1", "s3://bucket/runs/artifacts/two"),
    ):
        name = expected.rpartition("/")[2]
        tracker = MlflowTracker(uri, name, beside=beside)
        assert MlflowClient(uri).get_experiment(tracker.experiment_id).artifact_location == expected
