"""Reports to MLflow: one run per experiment, written by the driver alone."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import nn

from raysim.errors import SettingError
from raysim.fates import BATTERY, COUNTED, DROPPED, OFFLINE, UNREACHABLE
from raysim.types import RoundReport

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.entities import Dataset, DatasetInput, Metric, Param
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

DEFAULT_URI = "sqlite:///runs/mlflow.db"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
WAYS = dict.fromkeys((DROPPED, OFFLINE, BATTERY, UNREACHABLE), "away")
"""Fates that share a curve; the clients' table and the summary tell them apart."""


def resolve_uri(uri: str | None) -> str:
    """Return the tracking URI to use, with an absolute path where it is an SQLite file.

    Raises:
        SettingError: If MLflow could not keep a run there.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in DATABASES + SERVERS:
        allowed = ", ".join(f"{name}://..." for name in ("sqlite:///FILE", "postgresql", "http", "https"))
        raise SettingError(f"tracking.uri={uri!r} is not allowed; allowed: {allowed.replace('FILE://...', 'FILE')}")
    file = _sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file.absolute()}"


class MlflowTracker:
    """Writes one run; holds the run's id and talks to the store by it."""

    def __init__(self, uri: str, experiment: str, parent: str = "") -> None:
        """Open the store, creating an SQLite file where there is none.

        Args:
            uri: Where MLflow keeps its runs.
            experiment: Name of the MLflow experiment.
            parent: Id of the run this one belongs to, where there is one.

        Raises:
            SettingError: If the store cannot be opened.
        """
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self.uri = uri
        self._file = _sqlite_file(uri)
        try:
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            with _few_retries():
                self._client = MlflowClient(uri)
                self.experiment_id = self._experiment(experiment)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise SettingError(f"tracking.uri={uri!r} cannot be opened: {reason}") from None
        self.run_id, self._parent = "", parent

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None if self._file is None else str(self._file.parent / "artifacts" / name)
        return str(self._client.create_experiment(name, artifact_location=location))

    def start(
        self, name: str, params: Mapping[str, str], tags: Mapping[str, str], digests: Mapping[str, str],
        start_time: int | None = None,
    ) -> str:  # fmt: skip
        """Create the run and return its id.

        Args:
            name: Name shown in the UI.
            params: The flattened settings.
            tags: Method, data set and the like.
            digests: `data` and `partition`.
            start_time: When it began, in milliseconds; none = now.
        """
        parent = {MLFLOW_PARENT_RUN_ID: self._parent} if self._parent else {}
        run = self._client.create_run(self.experiment_id, start_time, parent | dict(tags), run_name=name)
        self.run_id = run.info.run_id
        entries = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(entries), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=entries[start : start + PARAMS_PER_CALL])
        dataset = Dataset(tags["data"], digests["data"][:36], "raysim", f'{{"partition": "{digests["partition"]}"}}')
        self._client.log_inputs(self.run_id, [DatasetInput(dataset)])
        for what, digest in digests.items():
            self._client.set_tag(self.run_id, f"{what}_sha256", digest)
        return self.run_id

    def track(self, *reports: RoundReport) -> None:
        """Log rounds, each stamped with the time at which it ended."""
        self._log([
            Metric(key, value, report.timestamp_ms, report.round)
            for report in reports
            for key, value in metrics_of(report).items()
        ])  # fmt: skip

    def measure(self, metrics: Mapping[str, float]) -> None:
        """Log numbers that belong to the whole run and to no round."""
        now = int(time.time() * 1000)
        self._log([Metric(key, value, now, 0) for key, value in metrics.items()])

    def _log(self, metrics: list[Metric]) -> None:
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_PER_CALL])

    def artifact(self, path: Path) -> None:
        """Upload a file into the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path))

    def model(self, model: nn.Module, example: torch.Tensor) -> str:
        """Log a model in eval mode so that `mlflow.pytorch.load_model` gives it back; return its URI.

        Args:
            model: The final global model.
            example: At least two inputs.
        """
        inputs = example.numpy().astype(np.float32)
        with torch.no_grad():
            outputs = model.eval()(example).numpy()
        previous = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else ""  # type: ignore[no-untyped-call]
        mlflow.set_tracking_uri(self.uri)
        try:
            with mlflow.start_run(run_id=self.run_id):
                info = mlflow.pytorch.log_model(
                    model,
                    name="model",
                    input_example=inputs,
                    signature=mlflow.models.infer_signature(inputs, outputs),
                    pip_requirements=[
                        f"torch=={torch.__version__.partition('+')[0]}",
                        f"numpy=={np.__version__}",
                    ],
                )
        finally:
            mlflow.set_tracking_uri(previous)
        return str(info.model_uri)

    def note(self, key: str, text: str) -> None:
        """Set a tag."""
        self._client.set_tag(self.run_id, key, text[:5000])

    def end(self, status: str, end_time: int | None = None) -> None:
        """Mark the run FINISHED, FAILED or KILLED; it ended now or at a time in milliseconds."""
        self._client.set_terminated(self.run_id, status, end_time or int(time.time() * 1000))


def download(uri: str, run_id: str, names: Sequence[str], folder: Path) -> None:
    """Copy artifacts of a run into a folder.

    Raises:
        SettingError: If the store cannot be read, or has no such run or artifact.
    """
    file = _sqlite_file(uri)
    if file is not None and not file.is_file():
        raise SettingError(f"RUN={run_id!r} is no folder, and tracking.uri={uri!r}, where runs are kept, is no file")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        with _few_retries():
            client = MlflowClient(uri)
            there = {item.path for item in client.list_artifacts(run_id)}
            missing = [name for name in names if name not in there]
            for name in names if not missing else ():
                client.download_artifacts(run_id, name, str(folder))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"RUN={run_id!r} cannot be read from tracking.uri={uri!r}: {reason}") from None
    if missing:
        raise SettingError(f"RUN={run_id!r} has not finished, or is of another version: {missing[0]} is no artifact")


def metrics_of(report: RoundReport) -> dict[str, float]:
    """Return a round's metrics: at most 60 keys, whatever the number of clients."""
    totals, clients = report.totals, report.clients
    down, up = int(clients["down_bytes"].sum()), int(clients["up_bytes"].sum())
    metrics = {
        "traffic/down_bytes": down,
        "traffic/up_bytes": up,
        "traffic/total_bytes": totals.down_bytes + totals.up_bytes,
        "traffic/percent_of_fedavg": totals.bytes_percent_of_fedavg,
        "compute/train_flops": int(clients["train_flops"].sum()),
        "compute/total_train_flops": totals.train_flops,
        "compute/percent_of_fedavg": totals.flops_percent_of_fedavg,
        "clock/simulated_s": totals.simulated_s,
        "clock/round_s": report.round_s,
        "clock/wall_s": report.wall_s,
        "energy/round_j": float(clients["energy_j"].sum()),
        "energy/total_j": totals.energy_j,
        **_fates(report),
        "coverage/mean": report.coverage.mean,
        "coverage/min": report.coverage.min,
        "coverage/untrained_share": report.coverage.untrained_share,
        "coverage/untrained_channel_share": report.coverage.untrained_channel_share,
        **_pruning_ratios(report),
        **{f"diagnostics/{name}": value for name, value in report.diagnostics.items()},
    }
    if report.incidents:
        metrics["faults/retries"] = len(report.incidents)
    if isfinite(report.train_loss):
        metrics["loss/train"] = report.train_loss
    if totals.preparation_s:
        metrics["clock/preparation_s"] = totals.preparation_s
        metrics["traffic/preparation_bytes"] = totals.preparation_bytes
        metrics["compute/preparation_flops"] = totals.preparation_flops
    if report.score is not None:
        metrics["accuracy/global"] = report.score.accuracy
        metrics["loss/global"] = report.score.loss
    if totals.best_accuracy is not None:
        metrics["accuracy/best"] = totals.best_accuracy
    if report.submodel is not None:
        metrics["accuracy/submodel_mean"] = report.submodel.accuracy
        metrics["loss/submodel_mean"] = report.submodel.loss
    return {key: float(value) for key, value in metrics.items()}


def _pruning_ratios(report: RoundReport) -> dict[str, float]:
    counted = report.clients["fate"] == COUNTED
    if not counted.any():
        return {}
    ratios = report.clients["pruning_ratio"][counted].astype(np.float64)
    metrics = {"mean": ratios.mean(), "min": ratios.min(), "max": ratios.max()}
    for tier in report.tiers:
        members = report.clients["tier"][counted] == tier
        if members.any():
            metrics[f"tier/{tier}"] = ratios[members].mean()
    return {f"pruning_ratio/{name}": float(value) for name, value in metrics.items()}


def _fates(report: RoundReport) -> dict[str, float]:
    """Return how many clients of the round counted, and how many were lost in each way that has occurred."""
    fates = report.clients["fate"]
    metrics = dict.fromkeys((f"clients/{WAYS.get(fate, fate)}" for fate in (COUNTED, *report.totals.fates)), 0.0)
    for fate in fates:
        metrics[f"clients/{WAYS.get(str(fate), fate)}"] += 1
    staleness = report.round - report.clients["started_round"][fates == COUNTED]
    if report.is_asynchronous and len(staleness):
        metrics["clients/staleness_mean"] = float(staleness.mean())
    return metrics


@contextmanager
def _few_retries() -> Iterator[None]:
    """Let a server that is not there be noticed in seconds instead of MLflow's four minutes."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    added = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
