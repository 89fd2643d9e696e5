"""Complete the best trial of a sweep like a single run: with report, description in MLflow and registered model."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysim.analysis.sweep.journal import FINISHED
from raysim.analysis.sweep.plan import Trial
from raysim.analysis.sweep.writer import SweepWriter
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError, StoppedError, TrackingLostError, TrackingUnavailableError
from raysim.core.log import info, is_quiet, set_quiet
from raysim.core.storage import atomic
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from raysim.experiment import run as experiment
from raysim.experiment.experiment import Experiment
from raysim.simulation import checkpoint
from raysim.simulation.build import build_scenario
from raysim.tracking.mlflow_observer import until_logged
from raysim.tracking.run_reader import RunReader


def complete(writer: SweepWriter) -> None:
    """Complete each run of the best trial, if it is not complete yet.

    Raises:
        KeyboardInterrupt: If it is interrupted, also where a single run would raise another error.
        RunFailedError: If the results of a run cannot be written.
        TrackingLostError: If MLflow is unavailable.
        ReportLostError: If a report cannot be made.
    """
    best = writer.journal.best(writer.sweep.mode)
    if best is None or writer.journal.standings[best].ended != FINISHED:
        return
    trial = writer.sweep.trials[best]
    left = [run for run in trial.runs if not _is_complete(trial.folder_of(run, writer.folder))]
    if left:
        info(f"the best is {trial.title}; writing its reports and models")
    with _quietly():
        for run in left:
            _complete(writer, trial, run)


@contextmanager
def _quietly() -> Iterator[None]:
    """Show no progress, since all rounds are over."""
    before = is_quiet()
    set_quiet(True)
    try:
        yield
    finally:
        set_quiet(before)


def _is_complete(folder: Path) -> bool:
    run = RunReader.of_folder(storage_path(folder))
    return "trial" in run.summary and bool(run.metadata.get("finished"))


def _complete(writer: SweepWriter, trial: Trial, run: ExperimentSettings) -> None:
    path = trial.folder_of(run, writer.folder)
    folder = storage_path(path)
    recorded = RunReader.of_folder(folder)
    settings = recorded.settings_with(("tracking.system_metrics=false",))  # no round is executed
    key = recorded.metadata.get("key", "")
    scenario = build_scenario(settings)
    try:
        tracker = writer.runs.tracker_of(trial, run)
        known = tracker.find(tracker.run_id)
    except SettingError as error:
        raise TrackingLostError(str(error)) from None
    ended = Experiment(settings, folder, scenario, tracker, checkpoint.resume_point(folder), known, key=key)
    try:
        experiment.run(ended, InProcessRunner(), time.monotonic())
    except StoppedError:
        raise KeyboardInterrupt from None
    except (TrackingLostError, TrackingUnavailableError) as error:  # their messages say how a single run is resumed
        raise TrackingLostError(error.reason) from None
    summary = path / "summary.json"
    both = writer.runs.summary_of(trial, run) | RunReader.of_folder(folder).summary
    atomic.write_text(summary, json.dumps(both, indent=2))
    until_logged(summary.name, lambda: tracker.artifact(summary))
