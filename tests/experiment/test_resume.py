"""A run that is stopped anywhere and resumed: the same bits, clock, records and curves as one that was not."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from raysim.core.errors import RunFailedError, SettingError, TrackingLostError
from raysim.executors import in_process
from raysim.experiment import run as experiment
from raysim.experiment.resume import find, locked_run, prepare, warn_of_changes
from raysim.simulation import checkpoint, records
from raysim.tracking import mlflow_observer
from tests.clocked import FRAIL, MODES, QUICK
from tests.commands import left_with
from tests.conftest import settings_of, tiny_settings
from tests.stores import store_in

MEASURED = {"wall_s", "run_id", "output_dir", "tracking_uri", "experiment_id", "files_sha256"}
MEASURED_METRIC = "clock/wall_s"


class Stopping(in_process.InProcessRunner):
    """Stops as a killed process does, once a round has been reported."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def run(self, scenario, storage, start):
        for report in super().run(scenario, storage, start):
            if report.round > self._after:
                raise RunFailedError(report.round, -1, "stopped by a test")
            yield report


def played(folder: Path, settings, runner=None) -> dict[str, Any]:
    runner = runner or in_process.InProcessRunner()
    return experiment.run(experiment.prepare(settings, folder), runner, time.monotonic())


def resumed(folder: Path | str, *overrides: str, runner=None, uri: str | None = None) -> dict[str, Any]:
    with locked_run(str(folder), uri, overrides) as stopped:
        assert not stopped.is_finished
        return experiment.run(prepare(stopped), runner or in_process.InProcessRunner(), time.monotonic())


def curves(summary: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """All metrics of a run and of its clients' runs as MLflow has them: (step, value) in the order of steps.

    None has a step twice. What the machine was doing (`system/`) is no result.
    """
    client = MlflowClient(summary["tracking_uri"])
    run = client.get_run(summary["run_id"])
    found = curves_of(client, run)
    walls = [value for _, value in found[MEASURED_METRIC]]
    assert walls == sorted(walls)
    assert len(walls) == summary["rounds"]
    for child in client.search_runs([summary["experiment_id"]], f"tags.`mlflow.parentRunId` = '{summary['run_id']}'"):
        name = child.data.tags["client"]
        assert f"{name} pruning_ratio" not in found, f"client {name} has two runs"
        found |= {f"{name} {key}": points for key, points in curves_of(client, child).items()}
        found.setdefault(f"{name} pruning_ratio", [])
    return {key: points for key, points in found.items() if key not in records.MEASURED}


def curves_of(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    found = {}
    for key in run.data.metrics:
        if key.startswith("system/"):
            continue
        points = sorted(client.get_metric_history(run.info.run_id, key), key=lambda point: point.step)
        steps = [point.step for point in points]
        assert len(set(steps)) == len(steps), f"{key} has a step twice"
        stamps = [point.timestamp for point in points]
        assert stamps == sorted(stamps), f"{key} goes back in time"
        found[key] = [(point.step, point.value) for point in points]
    return found


def assert_same_run(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Summaries, records and curves agree in all but what was measured."""
    assert {k: v for k, v in ours.items() if k not in MEASURED} == {
        k: v for k, v in theirs.items() if k not in MEASURED
    }
    for name in ("clients", "channels"):
        tables = [pq.read_table(Path(summary["output_dir"]) / f"{name}.parquet") for summary in (ours, theirs)]
        assert tables[0].equals(tables[1])
    tables = [pq.read_table(Path(summary["output_dir"]) / "rounds.parquet") for summary in (ours, theirs)]
    computed = [
        table.select([name for name in table.column_names if name not in records.MEASURED]) for table in tables
    ]
    assert computed[0].equals(computed[1])
    assert curves(ours) == curves(theirs)


CASES = {
    "ca-hfp in sync": ("ca-hfp", "sync", 3),
    "ca-hfp in deadline": ("ca-hfp", "deadline", 2),
    "magnitude in over-selection": ("magnitude", "over-selection", 3),
    "ca-hfp in async": ("ca-hfp", "async", 2),
    "scaffold in deadline": ("scaffold", "partial", 3),
    "autoflip before its first checkpoint": ("autoflip", "sync", 0),
}
FEW_CASES = ("ca-hfp in async", "scaffold in deadline", "autoflip before its first checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in FEW_CASES else pytest.mark.long) for case in CASES]
)
def test_a_stopped_run_goes_on_to_the_same_bits(case: str, tmp_path: Path) -> None:
    """Checkpoints every second round, so that a round or two are played again."""
    method, mode, after = CASES[case]
    settings = settings_of(
        method,
        *QUICK,
        *MODES[mode],
        *FRAIL,
        "rounds=5",
        "checkpoint.every=2",
        "tracking.client_runs=true",
        f"tracking.uri={store_in(tmp_path)}",
    )
    whole = played(tmp_path / "whole", settings)
    with pytest.raises(RunFailedError):
        played(tmp_path / "out", settings, Stopping(after))
    run_id = json.loads((tmp_path / "out" / "run.json").read_text())["run_id"]
    told = MlflowClient(whole["tracking_uri"]).get_metric_history(run_id, "clock/simulated_s")
    assert [point.step for point in told] == list(range(1, after // 2 * 2 + 1)), "only what a checkpoint covers"
    summary = resumed(tmp_path / "out")
    assert summary["run_id"] == run_id
    assert_same_run(summary, whole)
    of_clients = {name.partition(" ")[0] for name in curves(summary) if " " in name}
    assert of_clients == {str(client) for client in range(settings.population.clients)}
    assert find(str(tmp_path / "out")).summary == summary


FOUR = ("rounds=4", "data.max_train_examples=150", "evaluation.max_examples=50", "tracking.client_runs=true")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"tracking.uri={store_in(tmp_path_factory.mktemp('store'))}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, store: str) -> dict[str, Any]:
    return played(tmp_path_factory.mktemp("whole") / "out", tiny_settings(*FOUR, store))


@pytest.fixture
def stopped(store: str, tmp_path: Path) -> Path:
    with pytest.raises(RunFailedError):
        played(tmp_path / "out", tiny_settings(*FOUR, store), Stopping(1))
    return tmp_path / "out"


@pytest.mark.slow
def test_a_torn_checkpoint_falls_back_to_the_one_before(stopped: Path, whole, capsys) -> None:
    newest = checkpoint.saved_in(stopped / "checkpoints")[-1]
    assert checkpoint.round_of(newest) == 2
    newest.write_bytes(newest.read()[:-7])
    assert_same_run(resumed(stopped), whole)
    told = capsys.readouterr().err
    assert "skipping the checkpoint of round 2" in told
    assert "resuming after round 1 of 4" in told


@pytest.mark.slow
def test_checkpoints_that_mlflow_knows_but_are_torn_leave_no_point_twice_and_new_ones_alone(
    store: str, tmp_path: Path, whole, capsys
) -> None:
    with pytest.raises(RunFailedError):
        played(tmp_path / "out", tiny_settings(*FOUR, store), Stopping(3))
    for torn in checkpoint.saved_in(tmp_path / "out" / "checkpoints"):
        torn.write_bytes(torn.read()[:-7])
    with pytest.raises(RunFailedError):
        resumed(tmp_path / "out", runner=Stopping(1))
    assert "there is no checkpoint: starting at round 1" in capsys.readouterr().err
    assert_same_run(resumed(tmp_path / "out"), whole)
    assert "resuming after round 2 of 4" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_checkpoint_whose_record_is_lost_is_passed_over(harm: str, stopped: Path, whole, capsys) -> None:
    part = records.path_of(stopped / "rounds", 2)
    content = part.read()
    part.remove()
    if harm == "cut":
        part.write_bytes(content[:-9])
    assert_same_run(resumed(stopped), whole)
    told = capsys.readouterr().err
    assert "skipping the checkpoint of round 2, whose record is lost" in told
    assert "resuming after round 1 of 4" in told


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_not_played_over(stopped: Path, capsys) -> None:
    newest = checkpoint.saved_in(stopped / "checkpoints")[-1]
    newest.remove()
    newest.make()
    assert left_with("resume", str(stopped)) == 2
    assert f"raysim: RUN='{stopped}' cannot be read: No such device" in capsys.readouterr().err
    assert newest.is_folder()


class Untold(in_process.InProcessRunner):
    """Takes MLflow's file away once the rounds are over."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self._store = store

    def final_state(self):
        self._store.rename(self._store.with_suffix(".away"))
        self._store.mkdir()
        return super().final_state()


@pytest.mark.slow
def test_a_run_that_is_over_tells_all_rounds_without_its_checkpoints(tmp_path: Path, whole, monkeypatch) -> None:
    store, folder = tmp_path / "mlflow.db", tmp_path / "out"
    monkeypatch.setattr(mlflow_observer, "PATIENCE_S", 0.5)
    with pytest.raises(TrackingLostError):
        played(folder, tiny_settings(*FOUR, f"tracking.uri=sqlite:///{store}"), Untold(store))
    store.rmdir()
    store.with_suffix(".away").rename(store)
    newest = checkpoint.saved_in(folder / "checkpoints")[-1]
    newest.write_bytes(b"")
    monkeypatch.setattr(mlflow_observer, "PATIENCE_S", 60.0)
    assert_same_run(resumed(folder), whole)
    assert newest.read() == b""


@pytest.mark.slow
def test_a_run_is_resumed_by_its_id_even_if_its_files_are_lost(
    stopped: Path, whole, store: str, monkeypatch, tmp_path, capsys
) -> None:
    run_id = json.loads((stopped / "run.json").read_text())["run_id"]
    uri = store.removeprefix("tracking.uri=")
    found = find(run_id, uri)
    assert (found.folder.path, found.metadata["run_id"]) == (stopped, run_id)
    shutil.rmtree(stopped)
    monkeypatch.chdir(tmp_path)
    summary = resumed(run_id, uri=uri)
    assert "cannot be reached: starting at round 1, new files in" in capsys.readouterr().err
    assert summary["run_id"] == run_id
    assert Path(summary["output_dir"]).parent == tmp_path / "runs"
    assert_same_run(summary, whole)
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert find(run_id).summary == summary
    assert find(run_id).is_finished


def test_a_finished_run_is_told_again_and_nothing_is_written(whole, capsys) -> None:
    folder = Path(whole["output_dir"])
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    for run in (str(folder), f"file://{folder}", whole["run_id"]):
        assert left_with("resume", run, "--json", "--tracking-uri", whole["tracking_uri"]) == 0
        assert capsys.readouterr().out == json.dumps(whole) + "\n"
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


@pytest.mark.slow
def test_what_a_run_is_cannot_be_changed_but_where_it_runs(stopped: Path, capsys) -> None:
    assert left_with("resume", str(stopped), "--set", "rounds=9") == 2
    assert "raysim: --set 'rounds=9' is not allowed when a run is resumed" in capsys.readouterr().err
    assert left_with("resume", str(stopped), "--set", "executor.kind=rai") == 2
    assert "executor.kind='rai' is not allowed" in capsys.readouterr().err
    assert find(str(stopped), None, ["executor.kind=ray"]).settings.executor.kind == "ray"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("none", "RUN='none' is neither a folder nor the id of a run in MLflow"),
        ("0" * 32, "RUN='00000000000000000000000000000000' cannot be read from tracking.uri="),
        (".", "RUN='.' holds no run: config.yaml is missing"),
        ("bad://bucket/run", "'bad://bucket/run' is not allowed: "),
        ("s3://key:hidden@bucket/run", "'s3://key:...@bucket/run' is not allowed, since URIs are written down"),
    ],
)
def test_a_run_that_is_not_there_is_refused(run: str, message: str, whole, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert left_with("resume", run, "--tracking-uri", whole["tracking_uri"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"raysim: {message}")
    assert "hidden" not in told


@pytest.mark.slow
def test_what_differs_from_before_is_said(stopped: Path, capsys) -> None:
    noted = json.loads((stopped / "run.json").read_text())
    noted["environment"]["version.torch"] = "0.4.1"
    (stopped / "run.json").write_text(json.dumps(noted))
    config = stopped / "config.yaml"
    config.write_text(config.read_text().replace("rounds: 4", "rounds: 5"))
    warn_of_changes(find(str(stopped)))
    told = capsys.readouterr().err
    assert "warning: the result may differ" in told
    assert "version.torch was 0.4.1, is " in told
    assert "config.yaml has been edited" in told


@pytest.mark.slow
def test_a_run_on_other_data_is_refused(stopped: Path) -> None:
    noted = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps(noted | {"partition_sha256": "0"}))
    with pytest.raises(SettingError, match="cannot be resumed: its partition has changed"):
        prepare(find(str(stopped)))


@pytest.mark.slow
def test_a_run_that_is_going_on_is_not_resumed(stopped: Path, whole, capsys) -> None:
    """Not even read: what was read of it would not be true any more when it is played."""
    with locked_run(str(stopped)) as first:
        assert left_with("resume", str(stopped)) == 2
        assert "is in use: another process runs it" in capsys.readouterr().err
        experiment.run(prepare(first), in_process.InProcessRunner(), time.monotonic())
    with locked_run(str(stopped)) as second:
        assert second.is_finished
    assert_same_run(first_summary := find(str(stopped)).summary, whole)
    assert first_summary["rounds"] == 4


@pytest.mark.slow
def test_what_killed_writers_have_left_is_gone_when_a_run_goes_on(stopped: Path) -> None:
    left = stopped / "checkpoints" / ".round_000003.safetensors.0123456789ab.partial"
    left.write_bytes(b"half")
    with locked_run(str(stopped)):
        assert not left.exists()


@pytest.mark.slow
def test_a_run_that_mlflow_has_as_running_elsewhere_is_warned_of(stopped: Path, store: str, capsys, tmp_path) -> None:
    run_id = json.loads((stopped / "run.json").read_text())["run_id"]
    uri = store.removeprefix("tracking.uri=")
    moved = stopped.rename(tmp_path / "moved")
    for status, warned in (("FAILED", False), ("RUNNING", True)):
        MlflowClient(uri).update_run(run_id, status=status)
        prepare(find(str(moved)))
        assert (f"warning: run {run_id} is RUNNING in MLflow" in capsys.readouterr().err) == warned


@pytest.mark.slow
def test_a_run_that_mlflow_was_not_told_to_be_finished_is_not_taken_for_it(whole, store: str, tmp_path, monkeypatch):
    """Its summary is in MLflow already, its model is not, and its files are lost."""
    uri = store.removeprefix("tracking.uri=")
    folder = tmp_path / "out"
    summary = played(folder, tiny_settings(*FOUR, store))
    shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path)
    assert find(summary["run_id"], uri).is_finished
    MlflowClient(uri).update_run(summary["run_id"], status="RUNNING")
    assert not find(summary["run_id"], uri).is_finished
