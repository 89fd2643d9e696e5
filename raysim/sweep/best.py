"""Ends the best trial of a sweep as single runs end: with its report, its description in MLflow and its model."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysim import config_file, continuation, experiment, messages, places, simulation
from raysim.config import ExperimentSettings
from raysim.errors import SettingError, TrackingLostError
from raysim.messages import say
from raysim.simulation import InProcessRunner
from raysim.sweep.journal import FINISHED
from raysim.sweep.plan import Trial
from raysim.sweep.record import SweepRecord


def complete(record: SweepRecord) -> None:
    """End each run of the best trial as if it had been the only one; one that has been is left as it is.

    Raises:
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
    before = messages.is_quiet()
    messages.be_quiet(True)
    try:
        yield
    finally:
        messages.be_quiet(before)


def _is_complete(folder: Path) -> bool:
    return bool(json.loads((folder / "run.json").read_text(encoding="utf-8")).get("finished"))


def _complete(record: SweepRecord, trial: Trial, run: ExperimentSettings) -> None:
    folder = places.at(record.folder_of(trial, run))
    with (folder / "config.yaml").fetched() as path:
        settings = config_file.load(path, ("tracking.system_metrics=false",))  # no round is played
    try:
        tracker = record.tracker_of(trial, run)
        played = experiment.Experiment(
            settings, folder, simulation.build(settings), tracker, continuation.newest(folder),
            tracker.find(tracker.run_id),
        )  # fmt: skip
        experiment.run(played, InProcessRunner(), time.monotonic())
    except (TrackingLostError, SettingError) as error:
        raise TrackingLostError(
            f"MLflow could not be told of the best trial ({error.__context__ or error}); all files are in "
            f"{record.folder}, and `--resume` with this folder tells it what is missing"
        ) from None
