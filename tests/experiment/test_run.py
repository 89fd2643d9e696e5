"""One whole experiment, in-process: its results in MLflow and on disk."""

import getpass
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from raysim.analysis.comparison import run_record
from raysim.config import loader
from raysim.core import provenance, tensors
from raysim.core.errors import RunFailedError, SettingError, TrackingLostError
from raysim.core.storage.local import storage_path
from raysim.executors import in_process
from raysim.experiment import run as experiment
from raysim.experiment.observers import observers_of, outcome_of
from raysim.experiment.resume import locked_run, prepare
from raysim.report import write
from raysim.simulation import checkpoint, records
from raysim.tracking import datasets, mlflow_writer
from raysim.tracking.mlflow_observer import until_logged
from tests.conftest import ROOT, tiny_settings
from tests.stores import store_in


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    uri = store_in(folder / "store")
    settings = tiny_settings(
        "rounds=4",
        f"tracking.uri={uri}",
        "evaluation.every=2",
        "evaluation.client_share=0.5",
        "tracking.client_runs=true",
    )
    prepared = experiment.prepare(settings, folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
        summary = experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    client = MlflowClient(uri)
    return prepared, summary, client, client.get_run(summary["run_id"])


@pytest.mark.slow
def test_the_run_is_finished_and_described(finished) -> None:
    prepared, _, client, run = finished
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "digits"
    assert run.data.params == loader.flatten(prepared.settings)
    assert run.data.tags["method"] == "ca-hfp"
    assert run.data.tags["data_sha256"] == prepared.scenario.workload.data.digest
    assert len(run.data.tags["partition_sha256"]) == 64
    runs = client.search_runs([run.info.experiment_id])
    assert [each.info.run_id for each in runs if "mlflow.parentRunId" not in each.data.tags] == [run.info.run_id]


def test_the_data_sets_are_mlflows_own(finished) -> None:
    """As the page of a run shows them: for training and for testing, with their source, rows and classes."""
    prepared, _, _, run = finished
    data = prepared.scenario.workload.data
    found = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert list(found) == ["train", "test"]
    assert all(each.tags[0].key == "mlflow.data.context" for each in run.inputs.dataset_inputs)
    for split, labels in (("train", data.train_targets), ("test", data.test_targets)):
        dataset = found[split]
        assert (dataset.name, dataset.digest) == ("digits", f"{data.digest[:28]}-{split}")
        profile = json.loads(dataset.profile)
        assert profile["num_rows"] == len(labels)
        assert profile["rows_of_class"] == [int((labels == label).sum()) for label in range(10)]
        (spec,) = json.loads(json.loads(dataset.schema)["mlflow_tensorspec"]["features"])
        assert spec["tensor-spec"]["shape"] == [-1, 1, 8, 8]
        source = mlflow.data.get_source(dataset)
        assert source.to_dict()["tags"]["mlflow.source.name"] == "sklearn.datasets:load_digits"
    (files, _) = datasets.inputs_of(data, "some/folder")
    assert mlflow.data.get_source(files).uri == str(Path("some/folder").absolute())


def test_the_run_tells_where_it_comes_from_and_what_came_out(finished) -> None:
    prepared, summary, _, run = finished
    tags = run.data.tags
    assert (tags["devices"], tags["seed"], tags["model"]) == ("tiers", "0", "cnn")
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.name"] == provenance.command()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert tags["raysim.git.commit"].removesuffix("-dirty") == head.stdout.strip()
    note = tags["mlflow.note.content"]
    assert f"| test accuracy | {summary['accuracy']:.4f}, best {summary['best_accuracy']:.4f} |" in note
    assert f"| {summary['bytes_percent_of_fedavg']:.1f} % |" in note
    assert "**ca-hfp** trains cnn" in note
    assert f"`raysim resume {prepared.folder}`" in note


def test_the_machine_is_watched(finished) -> None:
    _, _, client, run = finished
    history = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in history] == list(range(len(history)))
    assert len(history) > 1


def test_each_client_has_a_run_with_its_curves(finished) -> None:
    """What the clients' table has of it, and its name and tags."""
    prepared, _, client, run = finished
    rows = pq.read_table(prepared.folder.path / "clients.parquet").to_pylist()
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", order_by=["tags.client"]
    )
    devices = prepared.scenario.workload.population.devices
    assert [child.data.tags["client"] for child in children] == [str(number) for number in range(6)]
    stamps = {round: records.logged(prepared.folder / "rounds", round).timestamp_ms for round in range(1, 5)}
    for number, child in enumerate(children):
        tier = devices.profile(number).name
        assert child.info.run_name == f"client {number:03d} ({tier})"
        assert (child.data.tags["tier"], child.data.tags["method"]) == (tier, "ca-hfp")
        assert child.info.status == "FINISHED"
        for key in ("pruning_ratio", "accuracy", "train_loss", "lasts_s"):
            history = client.get_metric_history(child.info.run_id, key)
            found = [(point.step, point.value, point.timestamp) for point in history]
            mine = [row for row in rows if row["client"] == number and row[key] is not None]
            assert found == [(row["round"], pytest.approx(row[key]), stamps[row["round"]]) for row in mine]


def test_metrics_are_few_and_there_for_every_round(finished) -> None:
    _, summary, client, run = finished
    keys = {key for key in run.data.metrics if not key.startswith("system/")}
    assert len(keys) <= 60
    wanted = {
        "accuracy/global", "accuracy/submodel_mean", "accuracy/submodel_p10", "loss/train", "loss/global",
        "pruning_ratio/mean", "pruning_ratio/p10", "pruning_ratio/p90", "client_s/p50", "traffic/down_bytes",
        "traffic/up_bytes", "compute/train_flops", "clock/simulated_s", "clock/wall_s", "coverage/mean",
        "fairness/slowest_decile_accuracy", "fairness/worst_tier_accuracy", "time/accuracy/global",
    }  # fmt: skip
    assert wanted <= keys
    assert any(key.startswith("pruning_ratio/tier/") for key in keys)
    history = client.get_metric_history(run.info.run_id, "clock/simulated_s")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert history[-1].value == summary["simulated_s"]
    scored = client.get_metric_history(run.info.run_id, "accuracy/global")
    assert [point.step for point in scored] == [2, 4]
    assert scored[-1].value == summary["accuracy"]
    last = client.get_metric_history(run.info.run_id, "time/accuracy/global")[-1]
    assert (last.step, last.value) == (int(summary["simulated_s"]), summary["accuracy"])


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


PAGE = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
"""How the model is loaded, as its user reads it."""
LOADING, _ = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def scores_elsewhere(summary, data, folder: Path, name: str = "digits") -> float:
    """Accuracy on the test set of the registered model, loaded in a process that knows nothing of raysim."""
    inputs, labels = data.test_rows(np.arange(len(data.test_targets)))
    np.savez(folder / "test.npz", inputs=inputs.numpy(), labels=labels.numpy())
    code = LOADING.replace("sqlite:///runs/mlflow.db", summary["tracking_uri"]).replace(
        "models:/digits/", f"models:/{name}/"
    )
    before = "import numpy, torch\ntest = numpy.load('test.npz')\ninputs = torch.from_numpy(test['inputs'])\n"
    after = "import sys\nassert 'raysim' not in sys.modules\nprint((classes.numpy() == test['labels']).mean())\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", before + code + after],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.slow
def test_the_registered_model_scores_the_same_without_raysim(finished, tmp_path: Path) -> None:
    prepared, summary, client, run = finished
    (version,) = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    assert (version.name, version.version) == ("digits", 1)
    accuracy = scores_elsewhere(summary, prepared.scenario.workload.data, tmp_path)
    assert accuracy == pytest.approx(summary["accuracy"]) == run.data.metrics["accuracy/global"]
    (logged,) = client.search_logged_models([run.info.experiment_id])
    mlflow.set_tracking_uri(prepared.tracker.uri)
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    assert signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert signature.outputs.inputs[0].shape == (-1, 10)


NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(64, 16), torch.nn.Linear(16, classes)

    def forward(self, inputs):
        hidden = self.hidden(inputs.flatten(1))
        {more}
        return self.out(torch.relu(hidden))

def build(num_classes):
    return Net(num_classes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "pass",
        pytest.param("hidden = hidden if hidden.is_meta or hidden.sum() > 0 else -hidden", marks=pytest.mark.long),
    ],
)
def test_a_users_model_is_loaded_without_its_code_or_with_what_travels_along(more, tmp_path, monkeypatch, capsys):
    """A graph needs none; a model without one, as it looks at its data, is pickled, its module with it."""
    folder = tmp_path / "users"
    folder.mkdir()
    (folder / f"net{len(more)}.py").write_text(NET.format(more=more))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    settings = tiny_settings(
        "rounds=1",
        f"tracking.uri={store_in(tmp_path)}",
        f"model.name=net{len(more)}:build",
        "model.options={}",
        "method.name=fedavg",
        "tracking.register_model=mine",
        "training.pack=1",
    )
    prepared = experiment.prepare(settings, tmp_path / "out")
    summary = experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    assert ("the final model is pickled, since PyTorch cannot export it" in capsys.readouterr().err) == (
        more != "pass"
    )
    accuracy = scores_elsewhere(summary, prepared.scenario.workload.data, tmp_path, "mine")
    assert accuracy == pytest.approx(summary["accuracy"])


def test_the_folder_holds_the_run(finished) -> None:
    prepared, summary, _, run = finished
    folder = prepared.folder.path
    assert loader.load(folder / "config.yaml") == prepared.settings
    assert json.loads((folder / "run.json").read_text())["run_id"] == run.info.run_id
    params = load_file(folder / "model.safetensors")
    assert tensors.digest(params) == summary["params_sha256"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert [path.name for path in checkpoint.saved_in(folder / "checkpoints")] == [
        "round_000003.safetensors",
        "round_000004.safetensors",
    ]
    state = checkpoint.load(folder / "checkpoints" / "round_000004.safetensors")
    assert tensors.digest(state.params) == summary["params_sha256"]
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


class StoppingRunner(in_process.InProcessRunner):
    """Raises after two rounds."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def run(self, scenario, storage, start):
        for report in super().run(scenario, storage, start):
            yield report
            if report.round == 2:
                raise self._error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"), [(RunFailedError(3, 5, "burnt"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_unfinished_run_keeps_what_was_earned(error: BaseException, status: str, tmp_path: Path, capsys) -> None:
    settings = tiny_settings("rounds=4", f"tracking.uri={store_in(tmp_path)}")
    prepared = experiment.prepare(settings, tmp_path / "out")
    with pytest.raises(type(error)):
        experiment.run(prepared, StoppingRunner(error), time.monotonic())
    client = MlflowClient(prepared.tracker.uri)
    run = client.get_run(prepared.tracker.run_id)
    assert run.info.status == status
    assert run.data.tags.get("failure") == (str(error) if status == "FAILED" else None)
    assert run.data.metrics["clock/simulated_s"] > 0
    assert checkpoint.load(tmp_path / "out" / "checkpoints" / "round_000002.safetensors").round == 2
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"clients.parquet", "run.json"} <= artifacts
    state, is_reported = ("failed", True) if status == "FAILED" else ("stopped", False)  # one leaves at once
    assert run_record.of_folder(storage_path(tmp_path / "out")).progress == f"{state} after round 2 of 4"
    page = tmp_path / "out" / "report.html"
    assert ("report.html" in artifacts) == page.is_file() == is_reported
    if is_reported:
        assert "This run has failed (round 3, client 5: burnt): 2 of 4 rounds are shown here." in page.read_text()
        assert f"report of the rounds so far: {page}" in capsys.readouterr().err
    with locked_run(str(tmp_path / "out")) as stopped:
        resumed = prepare(stopped)
        observers = observers_of(resumed)
        experiment.begin(resumed, observers)
    assert run_record.of_folder(storage_path(tmp_path / "out")).progress == "unfinished after round 2 of 4"
    observers.on_early_end(outcome_of(error))


@pytest.mark.slow
def test_a_report_that_cannot_be_made_hides_no_failure(tmp_path: Path, monkeypatch) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError("a figure went wrong")

    monkeypatch.setattr(write, "render", broken)
    settings = tiny_settings("rounds=3", f"tracking.uri={store_in(tmp_path)}")
    prepared = experiment.prepare(settings, tmp_path / "out")
    with pytest.raises(RunFailedError, match="burnt"):
        experiment.run(prepared, StoppingRunner(RunFailedError(3, 5, "burnt")), time.monotonic())
    assert not (tmp_path / "out" / "report.html").exists()
    assert MlflowClient(prepared.tracker.uri).get_run(prepared.tracker.run_id).info.status == "FAILED"


@pytest.mark.slow
def test_a_run_that_cannot_write_its_files_is_failed_not_running(tmp_path: Path) -> None:
    """Its file is in the way when the run has been created in MLflow; from the beginning it looks like a run's."""
    settings = tiny_settings(f"tracking.uri={store_in(tmp_path)}")
    prepared = experiment.prepare(settings, tmp_path / "out")
    file, create = tmp_path / "out" / "run.json", prepared.tracker.create
    object.__setattr__(
        prepared.tracker, "create", lambda *given, **named: (create(*given, **named), file.unlink(), file.mkdir())
    )
    refused = f"--output='{tmp_path}/out' cannot be written: Is a directory"
    with pytest.raises(SettingError, match=refused):
        experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    client = MlflowClient(prepared.tracker.uri)
    assert client.get_run(prepared.tracker.run_id).info.status == "FAILED"
    prepared.tracker.run_id = ""
    with pytest.raises(SettingError, match="holds a run already"):
        experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    assert len(client.search_runs([prepared.tracker.experiment_id])) == 1


@pytest.mark.slow
def test_results_that_cannot_be_kept_are_a_failed_run_that_goes_on(tmp_path: Path) -> None:
    settings = tiny_settings("rounds=2", f"tracking.uri={store_in(tmp_path)}")
    prepared = experiment.prepare(settings, tmp_path / "out")
    in_the_way = tmp_path / "out" / "model.safetensors"
    (in_the_way / "x").mkdir(parents=True)
    with pytest.raises(RunFailedError, match=r"round 2: the results cannot be written: .*Is a directory"):
        experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    (in_the_way / "x").rmdir()
    in_the_way.rmdir()
    with locked_run(str(tmp_path / "out")) as stopped:
        summary = experiment.run(prepare(stopped), in_process.InProcessRunner(), time.monotonic())
    assert summary["rounds"] == 2
    assert MlflowClient(prepared.tracker.uri).get_run(summary["run_id"]).info.status == "FINISHED"


@pytest.mark.slow
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
        message = rf"mlflow\.db' cannot be written: .*`raysim resume {folder}` continues"
        with pytest.raises(SettingError, match=message):
            experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())

    take_away()
    begins()
    bring_back()
    create = prepared.tracker.create
    object.__setattr__(prepared.tracker, "create", lambda *given, **named: (create(*given, **named), take_away()))
    begins()
    bring_back()
    noted = json.loads((folder / "run.json").read_text())
    assert MlflowClient(noted["tracking_uri"]).get_run(noted["run_id"]).data.params == {}
    with locked_run(str(folder), None, ["executor.num_actors=3", "executor.kind=ray"]) as stopped:
        summary = experiment.run(prepare(stopped), in_process.InProcessRunner(), time.monotonic())
    assert summary["run_id"] == noted["run_id"]
    client = MlflowClient(noted["tracking_uri"])
    (run,) = client.search_runs([noted["experiment_id"]])
    assert run.info.status == "FINISHED"
    assert run.data.params["method.name"] == "ca-hfp"
    assert len(run.inputs.dataset_inputs) == 2
    assert run.data.tags["partition_sha256"] == noted["partition_sha256"]


@pytest.mark.slow
def test_a_description_can_be_sent_again(tmp_path: Path) -> None:
    """What was told stays; what is missing is added."""
    tracker = mlflow_writer.MlflowWriter(f"sqlite:///{tmp_path}/mlflow.db", "digits")
    tracker.create("one", {"data": "digits"})
    digests = {"data": "1" * 64, "partition": "2" * 64}
    tracker.describe({"seed": "0", "executor.num_actors": "2"}, {"data": "1" * 64, "partition": "2" * 64})
    tracker.describe({"seed": "0", "executor.num_actors": "1", "rounds": "3"}, digests)
    run = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert run.data.params == {"seed": "0", "executor.num_actors": "2", "rounds": "3"}
    assert len(run.inputs.dataset_inputs) == 1


@pytest.mark.slow
def test_only_what_mlflow_does_not_take_is_repeated() -> None:
    def lost_file() -> None:
        calls.append("file")
        raise FileNotFoundError("model.safetensors")

    def away() -> None:
        calls.append("store")
        raise TrackingLostError("gone")

    calls: list[str] = []
    with pytest.raises(FileNotFoundError):
        until_logged("a file", lost_file)
    with pytest.raises(TrackingLostError):
        until_logged("a file", away, 0.7)
    assert calls == ["file", "store", "store"]
