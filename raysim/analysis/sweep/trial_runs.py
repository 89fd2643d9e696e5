"""Write the MLflow runs of a sweep's trials: one for each trial and seed, below the run of the sweep."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from raysim.analysis.comparison.figures import figures_of
from raysim.analysis.comparison.run_record import by_validation, has_validation
from raysim.analysis.sweep.journal import FAILED, FINISHED, STOPPED, Journal
from raysim.analysis.sweep.plan import Sweep, Trial
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import ACCURACY, PrimaryMetric
from raysim.core.storage import atomic
from raysim.core.storage.local import storage_path
from raysim.core.tensors import Columns
from raysim.simulation import parts, records
from raysim.tracking.curves import LoggedSoFar, RunCurves, main_of
from raysim.tracking.mlflow_writer import MlflowWriter
from raysim.tracking.run_folder import new_key
from raysim.tracking.run_metadata import tags_of
from raysim.tracking.run_reader import RunReader, digests_of_files

IN_MLFLOW = "mlflow.json"
"""The file in the sweep's folder with the ids of its runs in MLflow."""
ARTIFACTS = (
    "rounds.parquet", "clients.parquet", "channels.parquet", "plan.json", "devices.parquet", "summary.json",
    "model.safetensors", "run.json",
)  # fmt: skip
"""Files of a run that are uploaded when its trial is over, as far as it wrote them."""


@dataclass(eq=False)
class _Child:
    """A run of a trial in MLflow, and its curves."""

    tracker: MlflowWriter
    curves: RunCurves


class TrialRuns:
    """The MLflow runs of a sweep's trials.

    Methods that write raise TrackingLostError, or SettingError if the store cannot be opened; the next call then logs
    what is missing.
    """

    def __init__(self, sweep: Sweep, folder: Path, parent: MlflowWriter, journal: Journal, ids: Mapping[str, Any]):
        """Start with the runs that a sweep had when it was interrupted.

        Args:
            sweep: The sweep.
            folder: Its folder.
            parent: Writes the run of the sweep.
            journal: The results of its trials.
            ids: The content of `mlflow.json`; empty for a new sweep.
        """
        self._sweep, self._folder, self._parent, self._journal = sweep, folder, parent, journal
        self.key = str(ids.get("key") or new_key())
        """Identifies the sweep before its run in MLflow has an id."""
        self._ids: dict[str, str] = dict(ids.get("children", {}))
        self._closed: dict[str, str] = dict(ids.get("closed", {}))
        self._children: dict[str, _Child] = {}

    def save_ids(self) -> None:
        """Write the ids of all runs to `mlflow.json`."""
        content = {
            "key": self.key,
            "run_id": self._parent.run_id,
            "experiment_id": self._parent.experiment_id,
            "tracking_uri": self._parent.uri,
            "children": self._ids,
            "closed": self._closed,
        }
        atomic.write_text(self._folder / IN_MLFLOW, json.dumps(content, indent=2))

    def log(self, trial: Trial, up_to: int) -> None:
        """Log the rounds of each run of a trial that are not logged yet."""
        for run in trial.runs:
            curves, rounds = self._child(trial, run).curves, trial.folder_of(run, self._folder) / "rounds"
            recorded = takewhile(
                lambda round: parts.holds(rounds, round),  # noqa: B023  (used up at once)
                range(curves.last_logged + 1, up_to + 1),
            )
            last = max(recorded, default=curves.last_logged)
            while curves.last_logged < last:
                curves.flush(last, hurry=False)

    def tracker_of(self, trial: Trial, run: ExperimentSettings) -> MlflowWriter:
        """Return the writer of a run of a trial."""
        return self._child(trial, run).tracker

    def _child(self, trial: Trial, run: ExperimentSettings) -> _Child:
        """Return a run of a trial, created or reopened when it is first used."""
        key = _key(trial, run)
        if key in self._children:
            return self._children[key]
        tracker, known = MlflowWriter(self._parent.uri, run.experiment, parent=self._parent.run_id), LoggedSoFar()
        folder = trial.folder_of(run, self._folder)
        metadata = RunReader.of_folder(storage_path(folder)).metadata
        if key in self._ids:
            known = tracker.find(self._ids[key])
            tracker.reopen()
        else:
            tags = tags_of(run) | {"trial": str(trial.index)} | metadata["environment"]
            tracker.create(f"trial {trial.index} seed {run.seed}", tags, key=f"{self.key}/{key}")
            self._ids[key] = tracker.run_id
            self.save_ids()
        digests = {what: metadata[f"{what}_sha256"] for what in ("data", "partition")}
        tracker.describe(loader.flatten(run), digests)
        tracker.artifact(folder / "config.yaml")
        unlogged = frozenset(metadata["unlogged"])
        curves = RunCurves(
            lambda round: records.logged(folder / "rounds", round, unlogged),
            tracker.log,
            known.round,
            known.second,
            main_of(run.task.primary_metric.name),
        )
        self._children[key] = _Child(tracker, curves)
        return self._children[key]

    def close(self, trial: Trial) -> None:
        """Upload the files of a trial that is over and end its runs; does nothing if that was done before."""
        standing = self._journal.standings[trial.index]
        for run in trial.runs:
            folder, key = trial.folder_of(run, self._folder), _key(trial, run)
            if not (folder / "run.json").is_file() or self._closed.get(key) == standing.ended:
                continue
            if any((folder / "rounds").glob("*.parquet")):
                records.merge_all(folder)
            self.log(trial, standing.round if standing.ended == STOPPED else run.rounds)
            child = self._child(trial, run)
            child.curves.finish()
            atomic.write_text(folder / "summary.json", json.dumps(self.summary_of(trial, run), indent=2))
            for name in ARTIFACTS:
                if (folder / name).is_file():
                    child.tracker.artifact(folder / name)
            if standing.ended == STOPPED:
                child.tracker.note("state", STOPPED)
            if standing.failure:
                child.tracker.note("failure", standing.failure)
            child.tracker.end("FAILED" if standing.ended == FAILED else "FINISHED")
            self._closed[key] = standing.ended
            self.save_ids()

    def close_all(self) -> None:
        """Close all trials that are over."""
        for trial in self._sweep.trials:
            if self._journal.standings[trial.index].ended:
                self.close(trial)

    def summary_of(self, trial: Trial, run: ExperimentSettings) -> dict[str, Any]:
        """Return what a run of a trial has reached, and how the trial ended."""
        standing, folder = self._journal.standings[trial.index], trial.folder_of(run, self._folder)
        table = folder / "rounds.parquet"
        return {
            "run_id": self.tracker_of(trial, run).run_id,
            "method": run.method.name,
            "seed": run.seed,
            "trial": trial.index,
            "values": dict(trial.values),
            "state": "" if standing.ended == FINISHED else standing.ended,
            "failure": standing.failure,
            **(
                run.task.primary_metric.entries | reached(records.read(table), run.task.primary_metric)
                if table.is_file()
                else {}
            ),
            "files_sha256": digests_of_files(storage_path(folder)),
        }

    def kill_unfinished(self) -> None:
        """Mark the runs of trials that are not over as KILLED."""
        for key, child in self._children.items():
            if not self._journal.standings[int(key.partition("/")[0])].ended:
                child.tracker.end("KILLED")


def reached(rounds: Columns, metric: PrimaryMetric = ACCURACY) -> dict[str, float]:
    """Return what a run of a trial reached and spent; scores on the validation rows are called so."""
    figures = figures_of(by_validation(rounds, metric), metric)
    if not has_validation(rounds, metric):
        return figures
    return {f"validation_{name}" if metric.name in name else name: value for name, value in figures.items()}


def _key(trial: Trial, run: ExperimentSettings) -> str:
    return f"{trial.name}/seed-{run.seed}"
