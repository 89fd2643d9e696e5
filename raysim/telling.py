"""Tells MLflow how a run ended: with all that its folder holds, or short of that."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

import numpy as np
from safetensors.torch import load_file

from raysim import records
from raysim.client_view import Workload
from raysim.errors import StoppedError, TrackingLostError
from raysim.messages import say
from raysim.place import Place
from raysim.pruning import submodel
from raysim.round_log import RoundLog
from raysim.tracking import MlflowTracker

PATIENCE_S = 30.0
"""How long a run that is over waits for MLflow."""
ARTIFACTS = ("rounds.parquet", "clients.parquet", "model.safetensors", "summary.json", "plan.json", "partition.png")
WHERE_THERE = ("channels.parquet", "partition.parquet", "report.html")
"""Artifacts that a run may lack: it was started before there were any, or its report could not be made."""
FAREWELL_S, HASTY_S = 30.0, 1.0
"""How long an unfinished run takes at most to tell MLflow, and one that has to leave at once; `ray job stop` gives
three seconds in all."""


def tell(tracker: MlflowTracker, folder: Place, workload: Workload, log: RoundLog) -> None:
    """Tell MLflow of what the folder holds; the run is finished when that is done.

    Raises:
        TrackingLostError: If MLflow does not listen; `raysim resume` makes up for it.
        OSError: If the folder cannot be read or written.
    """
    until = time.monotonic() + PATIENCE_S
    try:
        log.close(PATIENCE_S)
        patiently(lambda: _upload(tracker, folder, workload), until)
    except TrackingLostError as error:
        raise TrackingLostError(
            f"MLflow could not be told of all that happened ({error}); all files are in {folder}, "
            f"`raysim resume {folder}` tells it what is missing"
        ) from None
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"finished": True}, indent=2))


def _upload(tracker: MlflowTracker, folder: Place, workload: Workload) -> None:
    for name in (*ARTIFACTS, *WHERE_THERE):
        if name in ARTIFACTS or (folder / name).is_file():
            tracker.artifact(folder / name)
    if not tracker.has_model:
        say("logging the final model to MLflow")
        with (folder / "model.safetensors").fetched() as path:
            submodel.load_params(workload.model, load_file(path))
        example, _ = workload.data.test_rows(np.arange(2))
        tracker.model(workload.model, example)
    tracker.end("FINISHED")


def patiently(call: Callable[[], object], until: float) -> None:
    """Repeat a call that MLflow does not take, with longer and longer pauses.

    Args:
        call: What may be done again.
        until: `time.monotonic()` from which on it is not.

    Raises:
        TrackingLostError: If it has not worked by then.
    """
    pause_s = 0.5
    while True:
        try:
            call()
            return
        except TrackingLostError:
            if time.monotonic() + pause_s > until:
                raise
        time.sleep(pause_s)
        pause_s *= 2


def leave(tracker: MlflowTracker, folder: Place, log: RoundLog | None, error: BaseException) -> None:
    """Tell MLflow how an unfinished run ended, as far as it listens and time allows."""
    if not tracker.run_id or isinstance(error, TrackingLostError):
        return
    status = "KILLED" if isinstance(error, KeyboardInterrupt | StoppedError) else "FAILED"
    patience_s = HASTY_S if isinstance(error, KeyboardInterrupt) else FAREWELL_S
    steps: list[Callable[[], object]] = [] if log is None else [lambda: log.close(patience_s / 2)]
    steps += [] if status == "KILLED" else [lambda: tracker.note("failure", str(error))]
    steps += [lambda: tracker.end(status), lambda: _tell_records(tracker, folder)]

    def farewell() -> None:
        for step in steps:
            with suppress(Exception):
                step()

    last = Thread(target=farewell, daemon=True)
    last.start()
    last.join(patience_s)


def _tell_records(tracker: MlflowTracker, folder: Place) -> None:
    records.merge_all(folder)
    for table in records.TABLES:
        if (folder / table).children():
            tracker.artifact(folder / f"{table}.parquet")
