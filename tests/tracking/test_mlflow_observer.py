"""An MLflow server that is unreachable for a while: the run continues, and no point is missing or logged twice."""

import json
import time
from pathlib import Path

import pytest

from raysim.core.errors import TrackingLostError
from raysim.executors import in_process
from raysim.tracking import mlflow_observer
from tests.commands import left_with
from tests.conftest import tiny_settings
from tests.experiment.test_resume import assert_same_run, played
from tests.servers import mlflow_server
from tests.stores import store_in

SHORT = ("data.max_train_examples=150", "evaluation.max_examples=50", "rounds=9")


class Eventful(in_process.InProcessRunner):
    """Does something once a round has been reported."""

    def __init__(self, events) -> None:
        super().__init__()
        self._events = events

    def run(self, scenario, storage, start):
        for report in super().run(scenario, storage, start):
            yield report
            self._events.get(report.round, lambda: None)()


@pytest.mark.long
def test_rounds_of_an_outage_are_logged_when_mlflow_is_back(tmp_path: Path, capsys, monkeypatch) -> None:
    whole = played(tmp_path / "whole", tiny_settings(*SHORT, f"tracking.uri={store_in(tmp_path)}"))
    told: list[str] = []

    def until_said(words: str) -> None:
        until = time.monotonic() + 120
        while not any(words in text for text in told):
            assert time.monotonic() < until, "".join(told)
            time.sleep(0.05)
            told.append(capsys.readouterr().err)

    with mlflow_server(tmp_path) as server:
        uri = server.url.removesuffix("/health")
        settings = tiny_settings(*SHORT, f"tracking.uri={uri}")
        away = {
            3: server.stop,
            5: lambda: until_said("rounds cannot be logged to MLflow for now; the run continues: "),
            7: server.start,
        }
        summary = played(tmp_path / "out", settings, Eventful(away))
        told.append(capsys.readouterr().err)
        assert_same_run(summary, whole)
        assert "".join(told).count("cannot be logged") == 1
        assert "".join(told).count("MLflow is reachable again") == 1

        monkeypatch.setattr(mlflow_observer, "PATIENCE_S", 2.0)
        with pytest.raises(TrackingLostError, match=r"`raysim resume .*lost` logs what is missing"):
            played(tmp_path / "lost", settings, Eventful({4: server.stop}))
        summary = json.loads((tmp_path / "lost" / "summary.json").read_text())
        assert summary["params_sha256"] == whole["params_sha256"]
        capsys.readouterr()
        assert left_with("resume", str(tmp_path / "lost"), "--json") == 2
        assert "cannot be opened" in capsys.readouterr().err
        monkeypatch.setattr(mlflow_observer, "PATIENCE_S", 60.0)
        server.start()
        assert left_with("resume", str(tmp_path / "lost"), "--json") == 0
        assert json.loads(capsys.readouterr().out) == summary
        assert_same_run(summary, whole)
