"""Write a sweep: its folder, its journal, and its run in MLflow with one run below it for each trial and seed."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from raysim.analysis.sweep.journal import FAILED, FINISHED, STOPPED, Entry, Journal
from raysim.analysis.sweep.plan import FILE, Sweep, Trial
from raysim.analysis.sweep.trial_runs import IN_MLFLOW, TrialRuns
from raysim.config import loader, yaml_text
from raysim.core.errors import SettingError, TrackingLostError, reason_of
from raysim.core.log import warning
from raysim.core.storage import atomic
from raysim.core.storage.local import storage_path
from raysim.experiment.start import environment
from raysim.tracking.mlflow_writer import MlflowWriter, resolve_uri
from raysim.tracking.observer import HASTY_S
from raysim.tracking.run_files import json_object
from raysim.tracking.run_folder import locked, make_folder

TRIALS = "trials.json"
"""The file in the sweep's folder with the values of each trial."""
FREE = ("concurrent", "address")
"""Settings of a sweep that may be changed when it is resumed."""


class SweepWriter:
    """Writes a sweep; nothing else writes to its journal and its MLflow runs.

    An MLflow store that is unavailable for a while does not stop the sweep: later results are logged with what it
    lacks.
    """

    def __init__(self, sweep: Sweep, folder: Path, tracker: MlflowWriter, ids: Mapping[str, Any]) -> None:
        """Read the journal of a sweep; see `opened`.

        Args:
            sweep: The sweep.
            folder: Its folder.
            tracker: Writes the run of the sweep.
            ids: The content of `mlflow.json`; empty for a new sweep.
        """
        self.sweep, self.folder, self.tracker = sweep, folder, tracker
        self.journal = Journal(folder, len(sweep.trials), sweep.primary)
        self.runs = TrialRuns(sweep, folder, tracker, self.journal, ids)
        self._is_lost = False
        if ids.get("run_id"):
            tracker.find(ids["run_id"])

    def begin(self, digests: Mapping[str, str]) -> None:
        """Create or reopen the run of the sweep, and write what is about to run."""
        if self.tracker.run_id:
            self.tracker.reopen()
        else:
            base = self.sweep.base
            atomic.write_text(self.folder / FILE, loader.to_yaml(self.sweep.settings))
            values = [{"trial": trial.index, "values": dict(trial.values)} for trial in self.sweep.trials]
            atomic.write_text(self.folder / TRIALS, json.dumps(values, indent=2))
            tags = {"kind": "sweep", "data": base.data.name, "model": base.model.name} | environment()
            self.runs.save_ids()  # with the key, by which a run is found that is created and then lost
            self.tracker.create(self.sweep.title, tags, key=self.runs.key)
            self.runs.save_ids()
        self.tracker.describe(self._params(), digests)
        for name in (FILE, TRIALS):
            self.tracker.artifact(self.folder / name)
        for trial in self.sweep.trials:
            if self.journal.standings[trial.index].is_over:
                self.runs.close(trial)

    def _params(self) -> dict[str, str]:
        searched, settings = self.sweep.settings.search, self.sweep.settings
        shared = {
            name: value
            for name, value in loader.flatten(self.sweep.base).items()
            if name != "seed" and not any(name == each or name.startswith(f"{each}.") for each in searched)
        }
        given = {f"sweep.search.{name}": json.dumps(value) for name, value in searched.items()}
        others = ("samples", "search_seed", "seeds", "metric", "mode")
        given |= {f"sweep.{name}": str(getattr(settings, name)) for name in others}
        return shared | given | {"sweep.asha": "none" if settings.asha is None else settings.asha.model_dump_json()}

    def add_result(self, trial: Trial, entry: Entry) -> None:
        """Write what a trial has reached, and log its rounds up to there."""
        self.journal.add(entry)
        self._try_to_log(lambda: self.runs.log(trial, entry.round))

    def add_end(self, trial: Trial, entry: Entry) -> None:
        """Write how a trial ended."""
        self.journal.add(entry)
        self._try_to_log(lambda: self.runs.close(trial))

    def _try_to_log(self, log: Callable[[], None]) -> None:
        try:
            log()
            self._is_lost = False
        except (TrackingLostError, SettingError) as error:  # SettingError: the store cannot be opened
            if not self._is_lost:
                warning(f"trials cannot be logged to MLflow for now; the sweep continues: {error}")
            self._is_lost = True

    def end(self, status: str, tables: Mapping[str, Path], best_figures: Mapping[str, float]) -> None:
        """Log tables, counts and the best trial to the run of the sweep, and end it and the runs of open trials.

        Args:
            status: How it ended, in MLflow's words.
            tables: Files that are uploaded, by name.
            best_figures: Results of the best trial beyond the metric by which trials are compared.

        Raises:
            TrackingLostError: If MLflow is unavailable.
        """
        standings = self.journal.standings
        for path in tables.values():
            self.tracker.artifact(path)
        counts = {ended: sum(each.ended == ended for each in standings) for ended in (FINISHED, STOPPED, FAILED)}
        self.tracker.measure({f"trials/{ended.replace(' ', '_')}": count for ended, count in counts.items()})
        best = self.journal.best(self.sweep.mode)
        if best is not None:
            self.tracker.measure({f"best/{self.sweep.settings.metric}": standings[best].value or 0.0})
            self.tracker.measure({f"best/{name}": value for name, value in best_figures.items()})
            self.tracker.note("best_trial", self.sweep.trials[best].title)
        self._end(status)

    def abort(self) -> None:
        """Mark the runs of an interrupted sweep as KILLED, if MLflow answers at once."""

        def end() -> None:
            with suppress(Exception):
                self._end("KILLED")

        if self.tracker.run_id:
            thread = Thread(target=end, daemon=True)
            thread.start()
            thread.join(HASTY_S)

    def _end(self, status: str) -> None:
        self.runs.kill_unfinished()
        self.tracker.end(status)


@contextmanager
def opened(sweep: Sweep, folder: Path, resumes: bool) -> Iterator[SweepWriter]:
    """Make the folder of a sweep, or take that of an interrupted one, and lock it while the context lasts.

    Raises:
        SettingError: If the folder or the MLflow store cannot be used, another process runs the sweep, or the folder
            holds another sweep.
    """
    holds_a_sweep = (folder / FILE).exists()
    if resumes and not holds_a_sweep:
        raise SettingError(f"--resume={str(folder)!r} holds no sweep: {FILE} is missing")
    if holds_a_sweep and not resumes:
        raise SettingError(f"--output={str(folder)!r} holds a sweep already; give a folder without one, or --resume")
    if not resumes:
        resolve_uri(sweep.base.tracking.uri)  # a wrong one is refused before a folder is made
    make_folder(folder)
    with locked(storage_path(folder)):
        yield _resumed(sweep, folder) if resumes else _new(sweep, folder)


def _new(sweep: Sweep, folder: Path) -> SweepWriter:
    uri = resolve_uri(sweep.base.tracking.uri)
    return SweepWriter(sweep, folder, MlflowWriter(uri, sweep.base.experiment, beside=str(folder.parent)), {})


def _resumed(sweep: Sweep, folder: Path) -> SweepWriter:
    before = loader.read_yaml(folder / FILE, "--resume", yaml_text.RECORDED)
    now = sweep.settings.model_dump()
    changed = [name for name in now if name not in FREE and now[name] != before.get(name)]
    if changed:
        raise SettingError(
            f"--resume={str(folder)!r} cannot be resumed with other settings: {', '.join(changed)} has changed; "
            f"allowed to change: {', '.join(FREE)}"
        )
    path = folder / IN_MLFLOW
    ids = _ids_in(path)
    uri = ids.get("tracking_uri") or resolve_uri(sweep.base.tracking.uri)
    atomic.remove_partials(folder)
    tracker = MlflowWriter(uri, sweep.base.experiment, beside=str(folder.parent))
    return SweepWriter(sweep, folder, tracker, ids)


def _ids_in(path: Path) -> dict[str, Any]:
    """Return the content of mlflow.json; empty if there is none.

    Raises:
        SettingError: If it is damaged.
    """
    try:
        ids = json_object(path)
        for name, kind in (("run_id", str), ("tracking_uri", str), ("children", dict), ("closed", dict)):
            if not isinstance(ids.get(name, kind()), kind):
                raise ValueError(f"{name!r} is {ids[name]!r}")
    except (OSError, ValueError) as error:
        raise SettingError(f"--resume={str(path.parent)!r} cannot be read: {path.name}: {reason_of(error)}") from None
    return ids
