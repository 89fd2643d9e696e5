from pathlib import Path

import pytest
from conftest import tiny_settings

from raysim import simulation
from raysim.errors import SettingError
from raysim.executors import InProcessExecutor
from raysim.rounds import initial_state, run_round
from raysim.tracking import MlflowTracker, metrics_of, resolve_uri


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


@pytest.mark.parametrize("uri", ["mlruns", "file:///somewhere", "ftp://host/x", "./runs"])
def test_stores_that_mlflow_refuses_are_refused_first(uri: str) -> None:
    with pytest.raises(SettingError, match=r"tracking\.uri="):
        resolve_uri(uri)


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
