"""One whole experiment, in-process, as MLflow and the disk see it afterwards."""

import json
import time
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import tiny_settings
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from raysim import arrays, checkpoint, config_file, experiment, resuming, simulation, telling, tracking
from raysim.errors import RunFailedError, SettingError, TrackingLostError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    uri = f"sqlite:///{folder}/store/mlflow.db"
    settings = tiny_settings("rounds=4", f"tracking.uri={uri}", "evaluation.every=2", "evaluation.client_share=0.5")
    prepared = experiment.prepare(settings, folder / "out")
    summary = experiment.run(prepared, simulation.InProcessRunner(), time.monotonic())
    client = MlflowClient(uri)
    return prepared, summary, client, client.get_run(summary["run_id"])


def test_the_run_is_finished_and_described(finished) -> None:
    prepared, _, client, run = finished
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "digits"
    assert run.data.params == config_file.flatten(prepared.settings)
    assert run.data.tags["method"] == "ca-hfp"
    assert run.data.tags["data_sha256"] == prepared.scenario.workload.data.digest
    assert len(run.data.tags["partition_sha256"]) == 64
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_metrics_are_few_and_there_for_every_round(finished) -> None:
    _, summary, client, run = finished
    keys = set(run.data.metrics)
    assert len(keys) <= 60
    wanted = {
        "accuracy/global", "accuracy/submodel_mean", "loss/train", "loss/global", "pruning_ratio/mean",
        "pruning_ratio/min", "pruning_ratio/max", "traffic/down_bytes", "traffic/up_bytes", "compute/train_flops",
        "clock/simulated_s", "clock/wall_s", "coverage/mean",
    }  # fmt: skip
    assert wanted <= keys
    assert any(key.startswith("pruning_ratio/tier/") for key in keys)
    history = client.get_metric_history(run.info.run_id, "clock/simulated_s")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert history[-1].value == summary["simulated_s"]
    scored = client.get_metric_history(run.info.run_id, "accuracy/global")
    assert [point.step for point in scored] == [2, 4]
    assert scored[-1].value == summary["accuracy"]


def test_the_clients_table_has_every_client_of_every_round(finished, tmp_path: Path) -> None:
    prepared, summary, client, run = finished
    path = client.download_artifacts(run.info.run_id, "clients.parquet", str(tmp_path))
    table = pq.read_table(path)
    assert table.num_rows == 4 * 3
    columns = table.to_pydict()
    assert columns["round"] == [round for round in range(1, 5) for _ in range(3)]
    for column in ("pruning_ratio", "accuracy", "down_bytes", "up_bytes", "train_flops", "total_s"):
        assert column in columns
    assert sum(columns["up_bytes"]) == summary["up_bytes"]
    assert sum(columns["down_bytes"]) == summary["down_bytes"]
    assert sum(columns["train_flops"]) == summary["train_flops"]
    assert np.mean(columns["pruning_ratio"]) == pytest.approx(summary["pruning_ratio_mean"])
    slowest = [max(columns["total_s"][3 * k : 3 * k + 3]) for k in range(4)]
    assert sum(slowest) == pytest.approx(summary["simulated_s"])
    scored = [accuracy is not None for accuracy in columns["accuracy"]]
    assert sum(scored) == 4 * 2
    counts = prepared.scenario.workload.population.train.counts
    assert columns["examples"] == [counts[client] for client in columns["client"]]


def test_the_logged_model_scores_the_same(finished) -> None:
    prepared, summary, client, run = finished
    mlflow.set_tracking_uri(prepared.tracker.uri)
    (logged,) = client.search_logged_models([run.info.experiment_id])
    model = mlflow.pytorch.load_model(logged.model_uri)
    data = prepared.scenario.workload.data
    inputs, labels = data.test_rows(np.arange(len(data.test_labels)))
    with torch.no_grad():
        accuracy = float((model(inputs).argmax(1) == labels).double().mean())
    assert accuracy == pytest.approx(summary["accuracy"])


def test_the_folder_holds_the_run(finished) -> None:
    prepared, summary, _, run = finished
    folder = prepared.folder.path
    assert config_file.load(folder / "config.yaml") == prepared.settings
    assert json.loads((folder / "run.json").read_text())["run_id"] == run.info.run_id
    params = load_file(folder / "model.safetensors")
    assert arrays.digest(params) == summary["params_sha256"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert [path.name for path in checkpoint.saved_in(folder / "checkpoints")] == [
        "round_000003.safetensors",
        "round_000004.safetensors",
    ]
    state = checkpoint.load(folder / "checkpoints" / "round_000004.safetensors")
    assert arrays.digest(state.params) == summary["params_sha256"]
    assert len(list((folder / "clients").glob("round_*.parquet"))) == 4


def test_the_config_and_results_are_artifacts(finished, tmp_path: Path) -> None:
    prepared, _, client, run = finished
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {
        "config.yaml",
        "clients.parquet",
        "model.safetensors",
        "summary.json",
        "plan.json",
        "partition.png",
        "devices.parquet",
    } <= names
    assert (prepared.folder / "partition.png").read().startswith(b"\x89PNG")
    assert run.data.tags["leftover_rows"] == "0"
    path = client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    assert yaml.safe_load(Path(path).read_text())["seed"] == 0
    assert Path(prepared.tracker.uri.removeprefix("sqlite:///")).parent.joinpath("artifacts").is_dir()


def test_a_folder_that_holds_a_run_is_refused(finished) -> None:
    prepared, *_ = finished
    with pytest.raises(SettingError, match="holds a run already"):
        experiment.prepare(prepared.settings, prepared.folder)


class StoppingRunner(simulation.InProcessRunner):
    """Raises after two rounds."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def run(self, scenario, storage, start):
        for report in super().run(scenario, storage, start):
            yield report
            if report.round == 2:
                raise self._error


@pytest.mark.parametrize(
    ("error", "status"), [(RunFailedError(3, 5, "burnt"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_unfinished_run_keeps_what_was_earned(error: BaseException, status: str, tmp_path: Path) -> None:
    settings = tiny_settings("rounds=4", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    prepared = experiment.prepare(settings, tmp_path / "out")
    with pytest.raises(type(error)):
        experiment.run(prepared, StoppingRunner(error), time.monotonic())
    client = MlflowClient(prepared.tracker.uri)
    run = client.get_run(prepared.tracker.run_id)
    assert run.info.status == status
    assert run.data.tags.get("failure") == (str(error) if status == "FAILED" else None)
    assert run.data.metrics["clock/simulated_s"] > 0
    assert checkpoint.load(tmp_path / "out" / "checkpoints" / "round_000002.safetensors").round == 2
    assert "clients.parquet" in {item.path for item in client.list_artifacts(run.info.run_id)}


def test_a_run_that_cannot_write_its_files_is_failed_not_running(tmp_path: Path) -> None:
    settings = tiny_settings(f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    prepared = experiment.prepare(settings, tmp_path / "out")
    (tmp_path / "out" / "run.json").mkdir()
    with pytest.raises(SettingError, match=f"--output='{tmp_path}/out' cannot be written: Is a directory"):
        experiment.run(prepared, simulation.InProcessRunner(), time.monotonic())
    assert MlflowClient(prepared.tracker.uri).get_run(prepared.tracker.run_id).info.status == "FAILED"


def test_results_that_cannot_be_kept_are_a_failed_run_that_goes_on(tmp_path: Path) -> None:
    settings = tiny_settings("rounds=2", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    prepared = experiment.prepare(settings, tmp_path / "out")
    in_the_way = tmp_path / "out" / "model.safetensors"
    (in_the_way / "x").mkdir(parents=True)
    with pytest.raises(RunFailedError, match=r"round 2: the results cannot be kept: .*Is a directory"):
        experiment.run(prepared, simulation.InProcessRunner(), time.monotonic())
    (in_the_way / "x").rmdir()
    in_the_way.rmdir()
    with resuming.taken_up(str(tmp_path / "out")) as stopped:
        summary = experiment.run(resuming.prepare(stopped), simulation.InProcessRunner(), time.monotonic())
    assert summary["rounds"] == 2
    assert MlflowClient(prepared.tracker.uri).get_run(summary["run_id"]).info.status == "FINISHED"


def test_a_store_that_is_gone_when_the_run_begins_is_a_setting_and_leaves_a_way_on(tmp_path: Path) -> None:
    """It is gone before the run is made, then after: in MLflow there is one run in the end, described whole."""
    store, folder = tmp_path / "mlflow.db", tmp_path / "out"
    settings = tiny_settings("rounds=1", f"tracking.uri=sqlite:///{store}")
    away = store.with_suffix(".away")
    prepared = experiment.prepare(settings, folder)

    def take_away() -> None:
        store.rename(away)
        store.mkdir()

    def bring_back() -> None:
        store.rmdir()
        away.rename(store)

    def begins() -> None:
        with pytest.raises(SettingError, match=rf"mlflow\.db' cannot be written: .*`raysim resume {folder}` goes on"):
            experiment.run(prepared, simulation.InProcessRunner(), time.monotonic())

    take_away()
    begins()
    bring_back()
    create = prepared.tracker.create
    object.__setattr__(prepared.tracker, "create", lambda *given: (create(*given), take_away()))
    begins()
    bring_back()
    noted = json.loads((folder / "run.json").read_text())
    assert MlflowClient(noted["tracking_uri"]).get_run(noted["run_id"]).data.params == {}
    with resuming.taken_up(str(folder), None, ["executor.num_actors=3", "executor.kind=ray"]) as stopped:
        summary = experiment.run(resuming.prepare(stopped), simulation.InProcessRunner(), time.monotonic())
    assert summary["run_id"] == noted["run_id"]
    client = MlflowClient(noted["tracking_uri"])
    (run,) = client.search_runs([noted["experiment_id"]])
    assert run.info.status == "FINISHED"
    assert run.data.params["method.name"] == "ca-hfp"
    assert len(run.inputs.dataset_inputs) == 1
    assert run.data.tags["partition_sha256"] == noted["partition_sha256"]


def test_a_description_can_be_sent_again(tmp_path: Path) -> None:
    """What was told stays; what is missing is added."""
    tracker = tracking.MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", "digits")
    tracker.create("one", {"data": "digits"})
    digests = {"data": "1" * 64, "partition": "2" * 64}
    tracker.describe({"seed": "0", "executor.num_actors": "2"}, {"data": "1" * 64, "partition": "2" * 64})
    tracker.describe({"seed": "0", "executor.num_actors": "1", "rounds": "3"}, digests)
    run = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert run.data.params == {"seed": "0", "executor.num_actors": "2", "rounds": "3"}
    assert len(run.inputs.dataset_inputs) == 1


def test_only_what_mlflow_does_not_take_is_repeated() -> None:
    def lost_file() -> None:
        calls.append("file")
        raise FileNotFoundError("model.safetensors")

    def away() -> None:
        calls.append("store")
        raise TrackingLostError("gone")

    calls: list[str] = []
    with pytest.raises(FileNotFoundError):
        telling.patiently(lost_file, time.monotonic() + 60)
    with pytest.raises(TrackingLostError):
        telling.patiently(away, time.monotonic() + 0.7)
    assert calls == ["file", "store", "store"]
