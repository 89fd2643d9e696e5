"""Resume a run that was stopped: from its newest intact checkpoint, in the same MLflow run."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.config.tracking import WITHOUT_MLFLOW
from raysim.core.errors import SettingError
from raysim.core.log import info, warning
from raysim.core.storage import uris
from raysim.core.storage.defaults import default_folder
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.experiment.experiment import Experiment
from raysim.experiment.start import data_digests, environment
from raysim.experiment.store import open_tracker, store_of
from raysim.simulation import checkpoint
from raysim.simulation.build import build_scenario
from raysim.simulation.record_check import LostRecordError, check_records
from raysim.simulation.state import Start
from raysim.tracking import run_reader
from raysim.tracking.curves import LoggedSoFar
from raysim.tracking.run_files import check_has, reading
from raysim.tracking.run_folder import locked, make_folder, new_key
from raysim.tracking.run_reader import RUN, SUMMARY, RunReader

NEEDED = ("run_id", "output_dir", "data_sha256", "partition_sha256", "environment")
"""Entries of run.json without which a run cannot be resumed."""
BITS_DEPEND_ON = ("version.raysim", "version.torch", "version.numpy", "cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Stopped:
    """A run to be resumed.

    Attributes:
        settings: The experiment; where it runs may have been changed.
        folder: Its files; a new folder if they are lost.
        tracking_uri: The MLflow store, or `none`.
        metadata: The content of run.json; empty if the run stopped before it was written.
        summary: Costs and results of the run, if all its rounds are over.
        is_finished: Whether there is nothing left to do.
        is_locked: Whether its folder is locked, so that what was read of it stays true.
    """

    settings: ExperimentSettings
    folder: StoragePath
    tracking_uri: str
    metadata: Mapping[str, Any]
    summary: dict[str, Any] | None
    is_finished: bool
    is_locked: bool = False


@contextmanager
def locked_run(run: str, tracking_uri: str | None = None, overrides: Sequence[str] = ()) -> Iterator[Stopped]:
    """Find a run as `find` does, and lock its folder while the context lasts; a finished run needs no lock.

    Raises:
        SettingError: If there is no such run, another process runs it, or a setting may not be changed.
    """
    found = find(run, tracking_uri, overrides)
    if found.is_finished:
        yield found
        return
    make_folder(found.folder)
    with locked(found.folder):
        if (found.folder / "config.yaml").is_file():  # it may have been resumed, or have ended, before the lock
            found = _in_folder(found.folder, found.tracking_uri, overrides)
        found.folder.remove_partials()
        yield replace(found, is_locked=True)


def find(run: str, tracking_uri: str | None = None, overrides: Sequence[str] = ()) -> Stopped:
    """Find a run to be resumed.

    Args:
        run: Its output folder, or its id in MLflow.
        tracking_uri: The MLflow store; None: that of the run, or for an id MLFLOW_TRACKING_URI or the default one.
        overrides: Settings that may be changed, as `executor.num_actors=1`.

    Raises:
        SettingError: If there is no such run, or a setting may not be changed.
    """
    check_overrides(overrides)
    with run_reader.load(run, tracking_uri) as found:
        if found.folder is not None:
            return _in_folder(found.folder, found.tracking_uri or tracking_uri, overrides)
        return _without_folder(found, overrides)


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse to change the results of a run.

    Raises:
        SettingError: If a setting is neither one of `executor` nor `tracking.also`.
    """
    for override in overrides:
        name, _ = loader.parse_override(override)
        if not name.startswith("executor.") and name != "tracking.also":
            raise SettingError(
                f"--set {override!r} is not allowed when a run is resumed, since it could change the results; "
                "allowed: executor.* (where it runs) and tracking.also (which observers follow it)"
            )


def _in_folder(folder: StoragePath, tracking_uri: str | None, overrides: Sequence[str]) -> Stopped:
    with RunReader.of_folder(folder) as run:
        settings, metadata, summary = run.settings_with(overrides), run.metadata, run.summary
    is_finished = bool(summary and metadata.get("finished"))
    if not is_finished:
        _check_alone(run, str(folder.parent.parent.parent))
    store = _store_of(settings, metadata, tracking_uri)
    return Stopped(settings, folder, store, metadata, summary or None, is_finished)


def _without_folder(run: RunReader, overrides: Sequence[str]) -> Stopped:
    """Return a run whose folder cannot be reached: it starts again, in a new folder, unless it has finished."""
    metadata, summary, uri = run.metadata, run.summary, str(run.tracking_uri)
    _check_alone(run)
    if not metadata:
        raise SettingError(f"RUN={run.name!r} cannot be resumed: run.json is not among its artifacts in MLflow")
    settings, folder = run.settings_with(overrides), storage_path(metadata["output_dir"])
    if summary and run.mlflow_status == "FINISHED":
        return Stopped(settings, folder, uri, metadata, summary, is_finished=True)
    new = storage_path(default_folder() / f"{settings.experiment}-{time.strftime('%Y%m%d-%H%M%S')}")
    warning(f"the files of run {run.name} in {folder} cannot be reached: starting at round 1, new files in {new}")
    return Stopped(settings, new, uri, metadata, None, is_finished=False)


def _store_of(settings: ExperimentSettings, metadata: Mapping[str, Any], tracking_uri: str | None) -> str:
    """Return the store of the run, or the one that was given; a run without MLflow is resumed without it.

    Raises:
        SettingError: If a store is given for a run without MLflow, or it is not allowed.
    """
    own = metadata.get("tracking_uri") or settings.tracking.uri
    if tracking_uri in (None, own):
        return store_of(own)
    if own == WITHOUT_MLFLOW:
        raise SettingError(
            f"--tracking-uri={uris.masked(str(tracking_uri))!r} is not allowed: the run has tracking.uri={own!r}"
        )
    from raysim.tracking.mlflow_writer import resolve_uri

    return resolve_uri(tracking_uri)


def _check_alone(run: RunReader, sweep: str = "FOLDER") -> None:
    """Refuse a run that only its comparison or its sweep can resume."""
    if run.summary and not run.metadata:
        raise SettingError(
            f"RUN={run.name!r} belongs to a comparison, which is run as a whole; allowed: a run of its own"
        )
    if run.metadata and "run_id" not in run.metadata:
        raise SettingError(
            f"RUN={run.name!r} belongs to a trial of a sweep, which resumes it: `python jobs/sweep.py CONFIG "
            f"--resume {sweep}`"
        )


def prepare(stopped: Stopped) -> Experiment:
    """Build the scenario, open the MLflow store, and find the round to begin with; nothing is written.

    Raises:
        SettingError: If the data have changed, its files cannot be read, or the store has no such run.
    """
    settings, folder = stopped.settings, stopped.folder
    with reading(folder):
        check_has(RUN, stopped.metadata, NEEDED if stopped.metadata else ())
        check_has(SUMMARY, stopped.summary or {}, ("rounds", "wall_s") if stopped.summary else ())
    scenario = build_scenario(settings)
    start = _start_of(stopped)  # before anything is written
    make_folder(folder)
    tracker = open_tracker(stopped.tracking_uri, settings.experiment, folder)
    warn_of_changes(stopped)
    for what, digest in data_digests(scenario).items() if stopped.metadata else ():
        if digest != stopped.metadata[f"{what}_sha256"]:
            raise SettingError(f"RUN={str(folder)!r} cannot be resumed: its {what} has changed")
    logged = LoggedSoFar()
    if tracker is not None and stopped.metadata.get("run_id"):
        logged = tracker.find(stopped.metadata["run_id"])
        _warn_of_others(stopped)
    start = Start(start.round, max(start.wall_s, logged.wall_s))  # rounds that are repeated take their time, too
    _log_start(start, settings.rounds, stopped.summary is not None)
    key = stopped.metadata.get("key", "") if stopped.metadata else new_key()
    summary, is_locked = stopped.summary, stopped.is_locked
    return Experiment(settings, folder, scenario, tracker, start, logged, summary, is_locked, key=key)


def _start_of(stopped: Stopped) -> Start:
    """Return the round after which the run is resumed; a run whose rounds are over needs no checkpoint."""
    if stopped.summary is not None:
        return Start(stopped.summary["rounds"], stopped.summary["wall_s"])
    with reading(stopped.folder):
        key = stopped.metadata.get("key", "")
        start = checkpoint.resume_point(stopped.folder, key)
        try:
            check_records(stopped.folder, start.round, key, stopped.settings.task.primary_metric)
        except LostRecordError as error:
            raise SettingError(f"RUN={str(stopped.folder)!r} cannot be resumed: {error}") from None
        return start


def _log_start(start: Start, rounds: int, is_over: bool) -> None:
    if is_over:
        info("all rounds are over: completing the report and MLflow")
    elif start.round == 0:
        info("there is no checkpoint: starting at round 1")
    else:
        info(f"resuming after round {start.round} of {rounds}")


def _warn_of_others(stopped: Stopped) -> None:
    """Warn if another process may be running the run: in MLflow a killed run has the status of a running one."""
    folder, metadata = stopped.folder, stopped.metadata
    if folder.path is not None and str(folder) == metadata["output_dir"]:
        return  # the lock of the folder shows that no other process runs it
    from raysim.tracking.mlflow_reader import MlflowReader  # MLflow takes seconds to import

    run = MlflowReader(stopped.tracking_uri).run(metadata["run_id"])
    if run is not None and run.status == "RUNNING":
        warning(
            f"warning: run {metadata['run_id']} is RUNNING in MLflow, and {metadata['output_dir']} cannot be locked "
            "from here: make sure that no other process runs it, else rounds are logged twice"
        )


def warn_of_changes(stopped: Stopped) -> None:
    """Warn if something has changed since the run began on which bits depend."""
    metadata = stopped.metadata
    before, now = metadata.get("environment", {}), environment()
    changed = [
        f"{name} was {before[name]}, is {now[name]}"
        for name in BITS_DEPEND_ON
        if before.get(name, now[name]) != now[name]
    ]
    if metadata and metadata.get("config_sha256") != loader.digest(stopped.settings):
        changed.append("config.yaml has been edited")
    if changed:
        warning(f"warning: the result may differ from that of an uninterrupted run: {'; '.join(changed)}")
