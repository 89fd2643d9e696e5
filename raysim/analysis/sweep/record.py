"""What a sweep leaves: a folder, a parent run in MLflow, and a child run for each run of each trial."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from threading import Thread
from typing import Any

from raysim.analysis.comparison import reached
from raysim.analysis.sweep.journal import FAILED, FINISHED, STOPPED, Entry, Journal
from raysim.analysis.sweep.plan import FILE, Sweep, Trial
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError, TrackingLostError
from raysim.core.log import warn
from raysim.core.storage import atomic
from raysim.core.storage.local import storage_path
from raysim.experiment.observers import HASTY_S
from raysim.experiment.start import environment
from raysim.simulation import records
from raysim.tracking.curves import LoggedSoFar, RunCurves
from raysim.tracking.mlflow_writer import MlflowWriter, resolve_uri
from raysim.tracking.run_folder import held, make_folder
from raysim.tracking.run_metadata import tags_of

TRIALS, IN_MLFLOW = "trials.json", "mlflow.json"
LEFT = (
    "rounds.parquet", "clients.parquet", "channels.parquet", "plan.json", "devices.parquet", "summary.json",
    "model.safetensors", "run.json",
)  # fmt: skip
"""What a run leaves at its end, as far as it got there."""


@dataclass(eq=False)
class _Child:
    """A run of a trial in MLflow: what writes it, and its curves."""

    tracker: MlflowWriter
    curves: RunCurves


class SweepRecord:
    """Writes down a sweep; the only writer of its journal and its MLflow runs.

    A store that takes nothing for a while holds nothing up: what it has missed is logged with what comes next.
    """

    def __init__(self, sweep: Sweep, folder: Path, tracker: MlflowWriter, noted: Mapping[str, Any]) -> None:
        """Take up a sweep's folder; `opened` makes it.

        Args:
            sweep: What is run.
            folder: Its folder.
            tracker: Writes the parent run.
            noted: What `mlflow.json` tells of a sweep that goes on; empty for one that begins.
        """
        self.sweep, self.folder, self.tracker = sweep, folder, tracker
        self.journal = Journal(folder, len(sweep.trials))
        self._ids: dict[str, str] = dict(noted.get("children", {}))
        self._closed: dict[str, str] = dict(noted.get("closed", {}))
        self._children: dict[str, _Child] = {}
        self._is_lost = False
        if noted:
            tracker.find(noted["run_id"])

    def folder_of(self, trial: Trial, run: ExperimentSettings) -> Path:
        """Return the folder of one run of a trial."""
        return self.folder / "trials" / trial.name / f"seed-{run.seed}"

    def begin(self, digests: Mapping[str, str]) -> None:
        """Create the parent run, or go on with it, and write down what is about to run."""
        if self.tracker.run_id:
            self.tracker.reopen()
        else:
            base = self.sweep.base
            atomic.write_text(self.folder / FILE, loader.to_yaml(self.sweep.settings))
            values = [{"trial": trial.place, "values": dict(trial.values)} for trial in self.sweep.trials]
            atomic.write_text(self.folder / TRIALS, json.dumps(values, indent=2))
            tags = {"kind": "sweep", "data": base.data.name, "model": base.model.name} | environment()
            self.tracker.create(self.sweep.title, tags)
            self._note_ids()
        self.tracker.describe(self._params(), digests)
        for name in (FILE, TRIALS):
            self.tracker.artifact(self.folder / name)
        for trial in self.sweep.trials:
            if self.journal.standings[trial.place].is_over:
                self._close(trial)

    def _params(self) -> dict[str, str]:
        searched = self.sweep.settings.search
        shared = {
            name: value
            for name, value in loader.flatten(self.sweep.base).items()
            if name != "seed" and not any(name == each or name.startswith(f"{each}.") for each in searched)
        }
        asked = {f"sweep.search.{name}": json.dumps(value) for name, value in searched.items()}
        others = ("samples", "search_seed", "seeds", "metric", "mode")
        asked |= {f"sweep.{name}": str(getattr(self.sweep.settings, name)) for name in others}
        halving = self.sweep.settings.asha
        return shared | asked | {"sweep.asha": "none" if halving is None else halving.model_dump_json()}

    def result(self, trial: Trial, entry: Entry) -> None:
        """Write down what a trial has reached, and its rounds up to there."""
        self.journal.add(entry)
        self._telling(lambda: self._log(trial, entry.round))

    def end_of(self, trial: Trial, entry: Entry) -> None:
        """Write down how a trial ended."""
        self.journal.add(entry)
        self._telling(lambda: self._close(trial))

    def _telling(self, tell: Any) -> None:
        try:
            tell()
            self._is_lost = False
        except (TrackingLostError, SettingError) as error:  # a store that cannot be opened is told as a setting
            if not self._is_lost:
                warn(f"trials cannot be logged to MLflow for now, the sweep goes on: {error}")
            self._is_lost = True

    def _log(self, trial: Trial, up_to: int) -> None:
        """Log rounds of each run of a trial that are not logged yet."""
        for run in trial.runs:
            curves, rounds = self._child(trial, run).curves, self.folder_of(trial, run) / "rounds"
            there = takewhile(
                lambda round: records.path_of(rounds, round).is_file(),  # noqa: B023  (used up at once)
                range(curves.last_logged + 1, up_to + 1),
            )
            last = max(there, default=curves.last_logged)
            while curves.last_logged < last:
                curves.flush(last, hurry=False)

    def tracker_of(self, trial: Trial, run: ExperimentSettings) -> MlflowWriter:
        """Return what writes a run of a trial in MLflow."""
        return self._child(trial, run).tracker

    def _child(self, trial: Trial, run: ExperimentSettings) -> _Child:
        """Return a run in MLflow: made where there is none, taken up where a sweep goes on."""
        key = self._key(trial, run)
        if key in self._children:
            return self._children[key]
        tracker, known = MlflowWriter(self.tracker.uri, run.experiment, parent=self.tracker.run_id), LoggedSoFar()
        folder = self.folder_of(trial, run)
        noted = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if key in self._ids:
            known = tracker.find(self._ids[key])
            tracker.reopen()
        else:
            tags = tags_of(run) | {"trial": str(trial.place)} | noted["environment"]
            tracker.create(f"trial {trial.place} seed {run.seed}", tags)
            self._ids[key] = tracker.run_id
            self._note_ids()
        digests = {what: noted[f"{what}_sha256"] for what in ("data", "partition")}
        tracker.describe(loader.flatten(run), digests)
        tracker.artifact(folder / "config.yaml")
        untold = frozenset(noted["untold"])
        curves = RunCurves(
            lambda round: records.logged(folder / "rounds", round, untold), tracker.log, known.round, known.second
        )
        self._children[key] = _Child(tracker, curves)
        return self._children[key]

    def _note_ids(self) -> None:
        content = {
            "run_id": self.tracker.run_id, "experiment_id": self.tracker.experiment_id,
            "tracking_uri": self.tracker.uri, "children": self._ids, "closed": self._closed,
        }  # fmt: skip
        atomic.write_text(self.folder / IN_MLFLOW, json.dumps(content, indent=2))

    def _close(self, trial: Trial) -> None:
        """Write what the runs of a trial that is over leave, and end them in MLflow; done once."""
        standing = self.journal.standings[trial.place]
        self._merge(trial)
        for run in trial.runs:
            folder = self.folder_of(trial, run)
            key = self._key(trial, run)
            if not (folder / "run.json").is_file() or self._closed.get(key) == standing.ended:
                continue
            self._log(trial, standing.round if standing.ended == STOPPED else run.rounds)
            child = self._child(trial, run)
            child.curves.finish()
            atomic.write_text(folder / "summary.json", json.dumps(self.summary_of(trial, run), indent=2))
            for name in LEFT:
                if (folder / name).is_file():
                    child.tracker.artifact(folder / name)
            if standing.ended == STOPPED:
                child.tracker.note("state", STOPPED)
            if standing.failure:
                child.tracker.note("failure", standing.failure)
            child.tracker.end("FAILED" if standing.ended == FAILED else "FINISHED")
            self._closed[key] = standing.ended
            self._note_ids()

    def summary_of(self, trial: Trial, run: ExperimentSettings) -> dict[str, Any]:
        """Return what a run of a trial that is over has reached, and how the trial ended."""
        standing, table = self.journal.standings[trial.place], self.folder_of(trial, run) / "rounds.parquet"
        return {
            "run_id": self.tracker_of(trial, run).run_id, "method": run.method.name, "seed": run.seed,
            "trial": trial.place, "values": dict(trial.values),
            "state": "" if standing.ended == FINISHED else standing.ended, "failure": standing.failure,
            **(reached.figures_of(records.read(table)) if table.is_file() else {}),
        }  # fmt: skip

    def _merge(self, trial: Trial) -> None:
        for run in trial.runs:
            folder = self.folder_of(trial, run)
            if any((folder / "rounds").glob("*.parquet")):
                records.merge_all(folder)

    @staticmethod
    def _key(trial: Trial, run: ExperimentSettings) -> str:
        return f"{trial.name}/seed-{run.seed}"

    def catch_up(self) -> None:
        """Tell MLflow what it has missed.

        Raises:
            TrackingLostError: If it does not listen.
        """
        for trial in self.sweep.trials:
            if self.journal.standings[trial.place].ended:
                self._close(trial)

    def end(self, status: str, tables: Mapping[str, Path]) -> None:
        """Give the parent run the tables, the counts and the best trial, and end it; those that wait stand still.

        Raises:
            TrackingLostError: If MLflow does not listen.
        """
        standings = self.journal.standings
        for path in tables.values():
            self.tracker.artifact(path)
        counts = {ended: sum(each.ended == ended for each in standings) for ended in (FINISHED, STOPPED, FAILED)}
        self.tracker.measure({f"trials/{ended.replace(' ', '_')}": count for ended, count in counts.items()})
        best = self.journal.best(self.sweep.settings.mode)
        if best is not None:
            self.tracker.measure({f"best/{self.sweep.settings.metric}": standings[best].value or 0.0})
            self.tracker.note("best_trial", self.sweep.trials[best].title)
        self._end(status)

    def leave(self) -> None:
        """Tell MLflow that the sweep was interrupted, if it takes that at once."""

        def farewell() -> None:
            with suppress(Exception):
                self._end("KILLED")

        if self.tracker.run_id:
            last = Thread(target=farewell, daemon=True)
            last.start()
            last.join(HASTY_S)

    def _end(self, status: str) -> None:
        for key, child in self._children.items():
            place = int(key.partition("/")[0])
            if not self.journal.standings[place].ended:
                child.tracker.end("KILLED")
        self.tracker.end(status)


@contextmanager
def opened(sweep: Sweep, folder: Path, goes_on: bool) -> Iterator[SweepRecord]:
    """Make a sweep's folder, or take up that of one which was interrupted, and hold it while the context lasts.

    Raises:
        SettingError: If the folder or the MLflow store cannot be used, another process goes on with the sweep, or it
            is another one.
    """
    there = (folder / FILE).exists()
    if goes_on and not there:
        raise SettingError(f"--resume={str(folder)!r} holds no sweep: {FILE} is missing")
    if there and not goes_on:
        raise SettingError(f"--output={str(folder)!r} holds a sweep already; give a folder without one, or --resume")
    if not goes_on:
        resolve_uri(sweep.base.tracking.uri)  # one that is not allowed is refused before a folder is made
    make_folder(folder)
    with held(storage_path(folder)):
        yield _taken_up(sweep, folder) if goes_on else _begun(sweep, folder)


def _begun(sweep: Sweep, folder: Path) -> SweepRecord:
    uri = resolve_uri(sweep.base.tracking.uri)
    return SweepRecord(sweep, folder, MlflowWriter(uri, sweep.base.experiment, beside=str(folder.parent)), {})


def _taken_up(sweep: Sweep, folder: Path) -> SweepRecord:
    before = loader.read_yaml(folder / FILE, "--resume")
    now = loader.parse_value(loader.to_yaml(sweep.settings))
    free = ("concurrent", "address")
    changed = [name for name in now if name not in free and now[name] != before.get(name)]
    if changed:
        raise SettingError(
            f"--resume={str(folder)!r} cannot go on with other settings: {', '.join(changed)} is not as it was; "
            f"allowed to change: {', '.join(free)}"
        )
    path = folder / IN_MLFLOW
    noted = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    uri = noted.get("tracking_uri") or resolve_uri(sweep.base.tracking.uri)
    atomic.remove_partials(folder)
    tracker = MlflowWriter(uri, sweep.base.experiment, beside=str(folder.parent))
    return SweepRecord(sweep, folder, tracker, noted)
