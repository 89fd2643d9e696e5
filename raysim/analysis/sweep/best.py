"""Ends the best trial of a sweep as single runs end: with its report, its description in MLflow and its model."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysim.analysis.sweep.journal import FINISHED
from raysim.analysis.sweep.plan import Trial
from raysim.analysis.sweep.record import SweepRecord
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError, StoppedError, TrackingLostError, TrackingUnavailableError
from raysim.core.log import be_quiet, is_quiet, say
from raysim.core.storage import atomic
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from raysim.experiment import run as experiment
from raysim.simulation import checkpoint
from raysim.simulation.build import build_scenario
from raysim.tracking.mlflow_observer import until_logged


def complete(record: SweepRecord) -> None:
    """End each run of the best trial as if it had been the only one; one that has been is left as it is.

    Raises:
        KeyboardInterrupt: If it is interrupted, in whichever words a single run tells that.
        RunFailedError: If what a run leaves cannot be written.
        TrackingLostError: If MLflow does not listen.
        ReportLostError: If a report cannot be made.
    """
    best = record.journal.best(record.sweep.settings.mode)
    if best is None or record.journal.standings[best].ended != FINISHED:
        return
    trial = record.sweep.trials[best]
    left = [run for run in trial.runs if not _is_complete(record.folder_of(trial, run))]
    if left:
        say(f"the best is {trial.title}; writing its reports and models")
    with _in_silence():
        for run in left:
            _complete(record, trial, run)


@contextmanager
def _in_silence() -> Iterator[None]:
    """Show no progress of runs that have played all their rounds."""
    before = is_quiet()
    be_quiet(True)
    try:
        yield
    finally:
        be_quiet(before)


def _is_complete(folder: Path) -> bool:
    return "trial" in _json_of(folder / "summary.json") and bool(_json_of(folder / "run.json").get("finished"))


def _json_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _complete(record: SweepRecord, trial: Trial, run: ExperimentSettings) -> None:
    path = record.folder_of(trial, run)
    folder = storage_path(path)
    settings = loader.load(path / "config.yaml", ("tracking.system_metrics=false",))  # no round is played
    scenario = build_scenario(settings)
    try:
        tracker = record.tracker_of(trial, run)
        known = tracker.find(tracker.run_id)
    except SettingError as error:
        raise TrackingLostError(str(error)) from None
    played = experiment.Experiment(settings, folder, scenario, tracker, checkpoint.resume_point(folder), known)
    try:
        experiment.run(played, InProcessRunner(), time.monotonic())
    except StoppedError:
        raise KeyboardInterrupt from None
    except (TrackingLostError, TrackingUnavailableError) as error:  # their messages say how a single run is resumed
        raise TrackingLostError(error.reason) from None
    summary = path / "summary.json"
    both = record.summary_of(trial, run) | _json_of(summary)
    atomic.write_text(summary, json.dumps(both, indent=2))
    until_logged(summary.name, lambda: tracker.artifact(summary))
