"""Tells how a run ended, its folder and MLflow: with all that there is to tell, or short of that."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TypeVar

import numpy as np
from safetensors.torch import load_file

from raysim.client.view import Workload
from raysim.core.errors import StoppedError, TrackingLostError, reason_of
from raysim.core.log import say
from raysim.core.retry import retry
from raysim.core.storage.path import StoragePath
from raysim.pruning import submodel
from raysim.simulation import records
from raysim.tracking import description
from raysim.tracking import model as logged_model
from raysim.tracking.background import BackgroundLogger
from raysim.tracking.mlflow_writer import MlflowWriter

PATIENCE_S = 30.0
"""How long a run that is over waits while MLflow takes nothing."""
ARTIFACTS = ("rounds.parquet", "clients.parquet", "model.safetensors", "summary.json", "plan.json", "partition.png")
WHERE_THERE = ("channels.parquet", "partition.parquet", "report.html")
"""Artifacts that a run may lack: it was started before there were any, or its report could not be made."""
FAREWELL_S, HASTY_S = 30.0, 1.0
"""How long an unfinished run takes at most to tell MLflow, and one that has to leave at once; `ray job stop` gives
three seconds in all."""


Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """What MLflow is told at the end beyond the curves.

    Attributes:
        tracker: Writes the run.
        folder: The run's files.
        workload: The model is built as the run's was.
        note: The run's description as far as it was known when it began.
        model_name: Under which the final model is registered; none = it is not.
    """

    tracker: MlflowWriter
    folder: StoragePath
    workload: Workload
    note: str
    model_name: str | None


def log_results(ending: Ending, log: BackgroundLogger) -> None:
    """Tell MLflow of what the folder holds; the run is finished when that is done.

    Raises:
        TrackingLostError: If MLflow does not listen; `raysim resume` makes up for it.
        OSError: If the folder cannot be read or written.
    """
    folder = ending.folder
    try:
        log.close(PATIENCE_S, is_over=True)
        _upload(ending)
    except TrackingLostError as error:
        raise TrackingLostError(
            f"MLflow could not be told of all that happened ({error}); all files are in {folder}, "
            f"`raysim resume {folder}` tells it what is missing"
        ) from None
    update_run_json(folder, finished=True)


def update_run_json(folder: StoragePath, **stands: object) -> None:
    """Write down in run.json how a run stands.

    Args:
        folder: The run's files.
        stands: `finished`, whether MLflow knows all of it; `state`, `failed` or `stopped` if it ended without its
            figures; `failure`, why it failed. None takes away what is told.
    """
    before = json.loads((folder / "run.json").read_text())
    after = {name: value for name, value in (before | stands).items() if value is not None}
    if after != before:
        (folder / "run.json").write_text(json.dumps(after, indent=2))


def _upload(ending: Ending) -> None:
    tracker, folder, workload = ending.tracker, ending.folder, ending.workload
    for name in (*ARTIFACTS, *WHERE_THERE):
        if name in ARTIFACTS or (folder / name).is_file():
            until_logged(name, partial(tracker.artifact, folder / name))
    with (folder / "model.safetensors").fetched() as path:
        submodel.load_params(workload.model, load_file(path))
    example, _ = workload.data.test_rows(np.arange(2))
    version = until_logged(
        "the final model", lambda: logged_model.keep(tracker, workload.model, example, ending.model_name)
    )
    model = None if version is None else f"models:/{ending.model_name}/{version}"
    summary = json.loads((folder / "summary.json").read_text())
    note = description.after(ending.note, summary, model)
    until_logged("the description", lambda: tracker.note(description.TAG, note))
    until_logged("the end of the run", lambda: tracker.end("FINISHED"))


def until_logged(what: str, call: Callable[[], Value], patience_s: float = PATIENCE_S) -> Value:
    """Repeat a call to MLflow until it works.

    Args:
        what: What it logs.
        call: Can be repeated without harm.
        patience_s: Seconds after the first failure from which on it is not repeated.

    Raises:
        TrackingLostError: If it has not worked by then.
    """
    try:
        return retry(call, TrackingLostError, patience_s)
    except TrackingLostError as error:
        raise TrackingLostError(f"{what} could not be logged: {error}") from error


def record_abort(
    tracker: MlflowWriter, folder: StoragePath, log: BackgroundLogger | None, error: BaseException
) -> None:
    """Tell how an unfinished run ended, its folder first, then MLflow, as far as that listens and time allows.

    Its rounds so far have a report, where that is not to end at once.
    """
    if not tracker.run_id or isinstance(error, TrackingLostError) or _is_finished(folder):
        return
    is_hasty = isinstance(error, KeyboardInterrupt)
    failure = None if is_hasty or isinstance(error, StoppedError) else reason_of(error)
    patience_s = HASTY_S if is_hasty else FAREWELL_S
    until = time.monotonic() + patience_s

    def farewell() -> None:
        for step in _farewell(tracker, folder, log, failure, patience_s):
            if time.monotonic() > until:
                return
            with suppress(Exception):
                step()

    last = Thread(target=farewell, daemon=True)
    last.start()
    last.join(patience_s)


def _farewell(
    tracker: MlflowWriter, folder: StoragePath, log: BackgroundLogger | None, failure: str | None, patience_s: float
) -> Iterator[Callable[[], object]]:
    """Yield what there is to do when a run ends unfinished; what it failed of is none if it was stopped."""
    state, status = ("stopped", "KILLED") if failure is None else ("failed", "FAILED")
    page = None
    if not (folder / "summary.json").is_file():
        yield partial(update_run_json, folder, state=state, failure=failure)
        if patience_s > HASTY_S:
            page = Thread(target=_report, args=(folder,), daemon=True)  # MLflow may hang, a page may take long
            yield page.start
    if log is not None:
        yield partial(log.close, patience_s / 2, at_most_s=patience_s / 2)
    if failure is not None:
        yield partial(tracker.note, "failure", failure)
    yield partial(tracker.end, status)
    if page is not None:
        yield page.join
    yield partial(_upload_so_far, tracker, folder)
    if log is not None:
        yield partial(log.abort, status)


def _is_finished(folder: StoragePath) -> bool:
    with suppress(OSError, ValueError):
        return bool(json.loads((folder / "run.json").read_text()).get("finished"))
    return False


def _report(folder: StoragePath) -> None:
    if not (folder / "rounds").children():
        return
    from raysim.report import write  # Plotly takes a while to import

    with suppress(Exception):
        say(f"report of the rounds so far: {write.of_ended(folder)}")


def _upload_so_far(tracker: MlflowWriter, folder: StoragePath) -> None:
    for name in ("run.json", "report.html"):
        if (folder / name).is_file():
            tracker.artifact(folder / name)
    records.merge_all(folder)
    for table in records.TABLES:
        if (folder / table).children():
            tracker.artifact(folder / f"{table}.parquet")
