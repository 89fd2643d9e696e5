"""Run one experiment: prepare it, run its rounds, write its results, and let its observers end."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import RunFailedError, StoppedError, TrackingLostError, reason_of
from raysim.core.log import info, warning
from raysim.core.signals import FirstInterrupt, check_terminated
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath
from raysim.experiment.experiment import Experiment
from raysim.experiment.finish import summarise, write_results
from raysim.experiment.observers import Observers, observers_of, outcome_of
from raysim.experiment.start import write_start
from raysim.experiment.store import open_tracker, store_of
from raysim.simulation import remarks
from raysim.simulation.build import build_scenario, resolved
from raysim.simulation.scenario import Runner
from raysim.simulation.state import FinalState, Storage
from raysim.tracking.observer import RunOutcome
from raysim.tracking.run_folder import as_setting, check_alone, check_folder, locked, make_folder, update_run_json


def prepare(settings: ExperimentSettings, output: AnyPath) -> Experiment:
    """Build the scenario, then open the MLflow store; nothing is written but an empty store and folder.

    Args:
        settings: The experiment.
        output: The folder for its files; must not hold a run already.

    Raises:
        SettingError: If a setting is not allowed.
    """
    folder = storage_path(output)
    uri = store_of(settings.tracking.uri)
    check_folder(folder)
    scenario = build_scenario(settings)
    make_folder(folder)
    settings = resolved(settings, scenario)
    return Experiment(settings, folder, scenario, open_tracker(uri, settings.experiment, folder), is_new=True)


def run(experiment: Experiment, runner: Runner, started: float) -> dict[str, Any]:
    """Run a prepared experiment to its end and return its summary.

    Args:
        experiment: The prepared experiment.
        runner: Where its clients are trained; already entered.
        started: `time.monotonic()` at the start of the command, for the wall time.

    Raises:
        SettingError: If what is about to run cannot be written, to the folder or to MLflow.
        RunFailedError: If a round fails, or the results cannot be written; checkpoints and records are kept.
        StoppedError: If Ctrl-C stopped it after a round, or interrupted it after the last; all rounds are kept.
        TrackingLostError: If MLflow lacks some of the results; the files are complete.
        ReportLostError: If the report cannot be made; the results are complete, also in MLflow.
    """
    observers = observers_of(experiment)
    if experiment.summary is None:
        runner.make_ready(experiment.scenario)  # before anything is written
    with nullcontext() if experiment.is_locked else locked(experiment.folder):
        if experiment.is_new:
            check_alone(experiment.folder, experiment.key)
        with as_setting(experiment.folder, "cannot be written"):
            experiment.folder.remove_partials()
        summary = _run_to_results(experiment, runner, observers, started)
        _end(experiment, observers, summary)
    return summary


def _run_to_results(experiment: Experiment, runner: Runner, observers: Observers, started: float) -> dict[str, Any]:
    """Begin, run the rounds that are left, and write the results, unless they are there already."""
    try:
        begin(experiment, observers)
        if experiment.summary is not None:
            return experiment.summary
        final = _run_rounds(experiment, runner, observers)
        summary = summarise(experiment, final, experiment.start.wall_s + time.monotonic() - started)
        with _as_failure(final.round, "the results cannot be written"):
            return write_results(experiment, final, summary)
    except BaseException as error:
        outcome = outcome_of(error)
        has_results = experiment.summary is not None
        observers.on_early_end(outcome, None if has_results else partial(_write_end, experiment.folder, outcome))
        raise


def begin(experiment: Experiment, observers: Observers) -> None:
    """Write what is about to run, and let the observers begin."""
    if experiment.start.round == 0 and experiment.summary is None:
        _remark(experiment)
    with as_setting(experiment.folder, "cannot be written"):
        observers.on_begin(write_start(experiment), experiment.start.round)


def _remark(experiment: Experiment) -> None:
    """Log what the method or the model does not do as the settings ask."""
    if line := remarks.changed_widths(experiment.scenario):
        info(line)
    if line := remarks.nothing_cut(experiment.scenario):
        warning(line)


def _run_rounds(experiment: Experiment, runner: Runner, observers: Observers) -> FinalState:
    settings, last = experiment.settings, experiment.start.round
    storage = Storage(experiment.folder, settings.checkpoint.every, settings.checkpoint.keep, experiment.key)
    with FirstInterrupt(lambda: _stop(runner, settings.rounds)) as interrupt:
        for report in runner.run(experiment.scenario, storage, experiment.start):
            last = report.round
            observers.on_round(report)
            check_terminated()
    if interrupt.is_interrupted and last < settings.rounds:
        raise StoppedError(f"stopped after round {last}; `raysim resume {experiment.folder}` continues from there")
    return runner.final_state()


def _stop(runner: Runner, rounds: int) -> None:
    """Stop a run after the round in progress, and print which one that is."""
    try:
        when = f"round {min(runner.stop(), rounds)}"
    except Exception:  # the driver actor is lost, and is being replaced
        when = "the round in progress"
    warning(f"stopping after {when}; Ctrl-C again stops at once")


def _write_end(folder: StoragePath, outcome: RunOutcome) -> None:
    """Write to run.json how a run ended without results."""
    if outcome.state == "failed":
        update_run_json(folder, state="failed", failure=reason_of(outcome.error))
    else:
        update_run_json(folder, state="stopped")


def _end(experiment: Experiment, observers: Observers, summary: dict[str, Any]) -> None:
    """Let the observers end a run whose results are written."""
    folder = experiment.folder
    try:
        with _as_failure(summary["rounds"], "how the run ended cannot be written"):
            lost = observers.on_finish(summary)
            if not any(isinstance(error, TrackingLostError) for error in lost):
                update_run_json(folder, finished=True)
    except BaseException as error:
        observers.on_early_end(outcome_of(error))
        if not isinstance(error, KeyboardInterrupt):
            raise
        raise StoppedError(
            f"interrupted after the last round; all results are in {folder}, and `raysim resume {folder}` "
            "completes the report and MLflow"
        ) from None
    for other in lost[:-1]:
        warning(f"raysim: {other}")
    if lost:
        raise lost[-1]


@contextmanager
def _as_failure(round: int, what: str) -> Iterator[None]:
    """Report an error after the last round as a failure of the run."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(round, -1, f"{what}: {error}") from error
    except Exception as error:
        raise RunFailedError(round, -1, f"{what}: {type(error).__name__}: {error}", traceback.format_exc()) from error
