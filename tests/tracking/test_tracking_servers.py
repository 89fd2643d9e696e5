"""Real stores: an MLflow server with PostgreSQL behind it, PostgreSQL by itself, and servers that refuse."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from raysim.core.errors import RunFailedError
from raysim.simulation.build import build_scenario
from tests.commands import left_with
from tests.conftest import CONFIGS, TINY, tiny_settings
from tests.experiment.test_resume import Stopping, assert_same_run, played, resumed
from tests.experiment.test_run import scores_elsewhere
from tests.servers import mlflow_server, postgres_server
from tests.stores import store_in

pytestmark = pytest.mark.slow

SMALL = ("data.max_train_examples=150", "rounds=5", "checkpoint.every=2")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


@pytest.mark.long
def test_a_run_on_postgresql_is_that_on_sqlite_stopped_and_resumed_by_a_server_and_directly(
    postgres: str, tmp_path: Path, capsys
) -> None:
    """A run of two halves through a server, and one straight into its database: curves, clients, data, model."""
    asked = (*SMALL, "tracking.client_runs=true", "experiment=behind")
    whole = played(tmp_path / "whole", tiny_settings(*asked, f"tracking.uri={store_in(tmp_path)}"))
    with mlflow_server(tmp_path, postgres) as server:
        uri = server.url.removesuffix("/health")
        settings = tiny_settings(*asked, f"tracking.uri={uri}")
        with pytest.raises(RunFailedError):
            played(tmp_path / "out", settings, Stopping(3))
        summary = resumed(tmp_path / "out")
        assert_same_run(summary, whole)
        client = MlflowClient(uri)
        run = client.get_run(summary["run_id"])
        assert {each.tags[0].value for each in run.inputs.dataset_inputs} == {"train", "test"}
        assert "clients.parquet" in {item.path for item in client.list_artifacts(summary["run_id"])}
        data = build_scenario(settings).workload.data
        assert scores_elsewhere(summary, data, tmp_path, "behind") == pytest.approx(summary["accuracy"])
        capsys.readouterr()
        assert left_with("resume", str(tmp_path / "out"), "--json") == 0
        assert json.loads(capsys.readouterr().out) == summary
    plain = postgres.replace("+psycopg2", "")
    direct = played(tmp_path / "direct", tiny_settings(*asked, f"tracking.uri={plain}", "experiment=direct"))
    assert_same_run(direct | {"experiment": "behind"}, whole)
    (version,) = MlflowClient(postgres).search_model_versions(f"run_id = '{direct['run_id']}'")
    assert version.name == "direct"


@contextmanager
def refusing(status: int) -> Iterator[str]:
    """A server in front of which somebody asks who is there, and says no."""

    class Door(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status, "not for you")

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refused(uri: str, capsys, folder: Path) -> str:
    """What a run says to a store that refuses: one message, and exit code 2; no run is left in its folder."""
    settings = [part for override in (*TINY, f"tracking.uri={uri}") for part in ("--set", override)]
    assert left_with("run", str(CONFIGS / "digits.yaml"), *settings, "--output", str(folder)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"raysim: tracking.uri={uri!r} cannot be opened: ")
    assert not (folder / "config.yaml").exists()
    return told[0]


def test_a_server_that_refuses_is_one_message_and_exit_code_2(tmp_path: Path, capsys) -> None:
    with refusing(401) as uri:
        assert "401" in refused(uri, capsys, tmp_path / "401")
    with mlflow_server(tmp_path, "", "--allowed-hosts", "tracking.example:5000") as server:
        assert "403" in refused(server.url.removesuffix("/health"), capsys, tmp_path / "403")
