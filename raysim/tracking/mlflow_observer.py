"""Track a run in MLflow: create or reopen it, log its rounds, and log its results or how it failed."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np
from safetensors.torch import load_file

from raysim.core.errors import TrackingLostError, TrackingUnavailableError, reason_of
from raysim.core.json_text import json_in
from raysim.core.retry import retry
from raysim.core.storage.path import StoragePath
from raysim.pruning import submodel
from raysim.simulation import records
from raysim.simulation.state import RoundReport
from raysim.tracking import description, model, run_metadata
from raysim.tracking.background import BackgroundLogger
from raysim.tracking.curves import LoggedSoFar
from raysim.tracking.mlflow_writer import MlflowWriter
from raysim.tracking.observer import RunInfo, RunOutcome
from raysim.tracking.run_folder import update_run_json
from raysim.tracking.system_metrics import SystemMetrics

PATIENCE_S = 30.0
"""Seconds that a finished run waits while MLflow accepts nothing."""
AT_BEGIN = ("config.yaml", "run.json", "plan.json", "budgets.json", "devices.parquet")
"""Artifacts from the beginning of a run."""
AT_END = ("rounds.parquet", "clients.parquet", "model.safetensors", "summary.json", "plan.json", "partition.png")
"""Artifacts of a finished run."""
IF_THERE = ("channels.parquet", "partition.parquet", "method.parquet", "report.html")
"""Artifacts that a run may lack: a version before it or its method did not write them, or it has no report."""

Value = TypeVar("Value")


class MlflowObserver:
    """Tracks a run in MLflow."""

    def __init__(self, tracker: MlflowWriter, logged: LoggedSoFar, watches_machine: bool) -> None:
        """Track a new run, or one that the tracker has found.

        Args:
            tracker: Writes the run.
            logged: How much of the run MLflow has.
            watches_machine: Whether the machine's load is logged, as `system/`.
        """
        self._tracker, self._logged, self._watches_machine = tracker, logged, watches_machine
        self._run: RunInfo | None = None
        self._log: BackgroundLogger | None = None
        self._machine: SystemMetrics | None = None

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        """Create the run in MLflow, or reopen it; log settings, data and files, and begin to log rounds.

        Raises:
            TrackingUnavailableError: If MLflow does not accept it.
        """
        self._run = run
        try:
            self._describe(run)
        except TrackingLostError as error:
            raise TrackingUnavailableError(
                f"tracking.uri={self._tracker.uri!r} cannot be written: {error}; once MLflow is reachable, "
                f"`raysim resume {run.folder}` continues",
                reason=str(error),
            ) from None
        streams = run_metadata.streams_of(self._tracker, run.settings, run.scenario, run.folder, self._logged)
        self._log = BackgroundLogger(streams)
        self._log.cover(resumed_from)
        if self._watches_machine:
            self._machine = SystemMetrics(self._tracker.uri, self._tracker.run_id)

    def _describe(self, run: RunInfo) -> None:
        tracker, metadata = self._tracker, run.metadata
        if tracker.run_id:
            tracker.reopen()
        else:
            own = (run.settings, run.scenario, run.folder, metadata["environment"], metadata.get("key", ""))
            run_metadata.create(tracker, *own)
            update_run_json(run.folder, run_id=tracker.run_id)  # at once, so that it is not created twice
        digests = {what: metadata[f"{what}_sha256"] for what in ("data", "partition")}
        run_metadata.describe(tracker, run.settings, run.scenario, digests)
        for name in AT_BEGIN:
            tracker.artifact(run.folder / name)

    def on_round(self, report: RoundReport) -> None:
        """Allow the rounds up to this one to be logged, if a checkpoint covers them."""
        if self._log is not None and report.is_saved:
            self._log.cover(report.round)

    def on_end(self, outcome: RunOutcome) -> None:
        """Log the results of a finished run, or how it failed.

        Raises:
            TrackingLostError: If MLflow does not get the results; `raysim resume` logs them later.
        """
        if self._machine is not None:
            self._machine.finish(outcome.is_hasty)
        if outcome.state != "finished":
            self._abort(outcome)
        elif self._run is not None and self._log is not None:
            self._finish(self._run, self._log)

    def _finish(self, run: RunInfo, log: BackgroundLogger) -> None:
        try:
            log.close(PATIENCE_S, is_over=True)
            self._log_results(run)
        except Exception as error:
            reason = str(error) if isinstance(error, TrackingLostError) else f"{type(error).__name__}: {error}"
            raise TrackingLostError(
                f"not everything could be logged to MLflow ({reason}); all files are in {run.folder}, "
                f"`raysim resume {run.folder}` logs what is missing",
                reason=reason,
            ) from error

    def _log_results(self, run: RunInfo) -> None:
        tracker, folder, name = self._tracker, run.folder, run.settings.model_name
        for file in (*AT_END, *IF_THERE):
            if file in AT_END or (folder / file).is_file():
                until_logged(file, partial(tracker.artifact, folder / file))
        with (folder / "model.safetensors").fetched() as path:
            submodel.load_params(run.scenario.workload.model, load_file(path))
        example, _ = run.scenario.workload.data.test_rows(np.arange(2))
        log_model = partial(model.keep, tracker, run.scenario.workload.model, example, name)
        version = until_logged("the final model", log_model)
        before = description.before(run.settings, run.scenario, str(folder))
        summary = json_in((folder / "summary.json").read_text())
        text = description.after(before, summary, None if version is None else f"models:/{name}/{version}")
        until_logged("the description", partial(tracker.note, description.TAG, text))
        until_logged("the end of the run", partial(tracker.end, "FINISHED"))

    def _abort(self, outcome: RunOutcome) -> None:
        """Log how an unfinished run ended, as far as MLflow accepts it and time allows."""
        if self._run is None or not self._tracker.run_id:
            return
        until = time.monotonic() + outcome.patience_s
        for step in self._steps_of_abort(self._run, outcome):
            if time.monotonic() > until:
                return
            with suppress(Exception):
                step()

    def _steps_of_abort(self, run: RunInfo, outcome: RunOutcome) -> Iterator[Callable[[], object]]:
        tracker, patience_s = self._tracker, outcome.patience_s
        status = outcome.state.upper()
        yield partial(tracker.end, status)  # first, since time may be short: else the run would seem to be running
        if outcome.state == "failed":
            yield partial(tracker.note, "failure", reason_of(outcome.error))
        if self._log is not None:
            yield partial(self._log.close, patience_s / 2, at_most_s=patience_s / 2)
        yield partial(_upload_so_far, tracker, run.folder)
        if self._log is not None:
            yield partial(self._log.abort, status)


def until_logged(what: str, call: Callable[[], Value], patience_s: float | None = None) -> Value:
    """Repeat a call to MLflow until it works; return its result.

    Args:
        what: The thing that it logs, for the message.
        call: Can be repeated without harm.
        patience_s: Seconds after the first failure from which on it is not repeated; None: as a finished run waits.

    Raises:
        TrackingLostError: If it has not worked by then.
    """
    try:
        return retry(call, TrackingLostError, PATIENCE_S if patience_s is None else patience_s)
    except TrackingLostError as error:
        raise TrackingLostError(f"{what} could not be logged: {error}") from error


def _upload_so_far(tracker: MlflowWriter, folder: StoragePath) -> None:
    for name in ("run.json", "report.html"):
        if (folder / name).is_file():
            tracker.artifact(folder / name)
    if not (folder / "summary.json").is_file():  # else the tables are whole, and have digests
        records.merge_all(folder)
    for table in records.TABLES:
        if (folder / table).children():
            tracker.artifact(folder / f"{table}.parquet")
