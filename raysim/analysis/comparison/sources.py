"""From what a user calls runs to their records: folders, ids in MLflow, experiments, comparisons and sweeps."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysim.analysis.comparison import run_record
from raysim.analysis.comparison.run_record import IN_MLFLOW, RunRecord
from raysim.config import loader
from raysim.core.errors import SettingError, nearest_first
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.tracking import run_reader

if TYPE_CHECKING:
    from raysim.tracking.mlflow_reader import MlflowReader, TrackedRun

EXPERIMENT = "experiment:"
"""Before the name of an MLflow experiment that a folder or a file is called like, too."""
FOLDERS_OF = {"comparison.yaml": ("runs", 1), "sweep.yaml": ("trials", 2)}
"""Files that tell what a folder holds, with where in it the runs are, and how many levels below."""
PARENTS = ("comparison", "sweep")
"""Kinds of MLflow runs that have children in their place."""
LEFT = ("rounds.parquet",)
"""What a run that is over leaves beyond its settings."""
RECORDS: Mapping[str, tuple[str, ...]] = {
    "running": (), "failed": (*LEFT, "summary.json"), "stopped": (*LEFT, "summary.json"),
}  # fmt: skip
"""What is read instead, by state: a run that was interrupted after its last round has a summary."""
STATES = {"FINISHED": "", "RUNNING": "running", "FAILED": "failed", "KILLED": "stopped", "SCHEDULED": "unfinished"}


class Sources:
    """Finds runs; MLflow is imported, and its store opened, only where it is asked."""

    def __init__(self, tracking_uri: str | None) -> None:
        self._tracking_uri = tracking_uri
        self._opened: MlflowReader | None = None
        self.notes: list[str] = []

    @property
    def _store(self) -> "MlflowReader":
        if self._opened is None:
            from raysim.tracking.mlflow_reader import MlflowReader
            from raysim.tracking.mlflow_writer import resolve_uri

            self._opened = MlflowReader(resolve_uri(self._tracking_uri))
        return self._opened

    def find(self, names: Sequence[str]) -> list[RunRecord]:
        """Return the runs that are meant, each once.

        Args:
            names: Each a run's folder or id, the folder or parent run of a comparison or a sweep, or an experiment.

        Raises:
            SettingError: If a name stands for nothing, or for what cannot be compared.
        """
        found: dict[str, RunRecord] = {}
        for name in names:
            for record in self._of(name):
                found.setdefault(record.run_id or record.name, record)
        return list(found.values())

    def _of(self, name: str) -> list[RunRecord]:
        if name.startswith(EXPERIMENT):
            return self._experiment(name, name.removeprefix(EXPERIMENT))
        folder = storage_path(name)
        with run_reader.reading(folder):
            is_folder = folder.is_folder()
        if is_folder:
            return self._folder(folder, name)
        hint = run_reader.nearest(folder, (run_reader.SETTINGS, *FOLDERS_OF))
        if "/" in name:
            raise SettingError(
                f"RUN={name!r} is neither a folder nor the id of a run in MLflow, nor an experiment there{hint}"
            )
        try:
            _ = self._store
        except SettingError as error:
            raise SettingError(f"RUN={name!r} is no folder, and {error}{hint}") from None
        return self._tracked(name) if re.fullmatch(r"[0-9a-f]{32}", name) else self._experiment(name, name, hint)

    def _folder(self, folder: StoragePath, name: str) -> list[RunRecord]:
        with run_reader.reading(folder):
            kinds = [file for file in FOLDERS_OF if (folder / file).is_file()]
            if not kinds and not (folder / "config.yaml").is_file():
                raise SettingError(
                    f"RUN={name!r} holds no run: config.yaml is missing; allowed: the output folder of a run, of "
                    "jobs/compare_methods.py or of jobs/sweep.py"
                )
        if not kinds:
            return [run_record.of_folder(folder)]
        with run_reader.reading(folder):
            inside, levels = FOLDERS_OF[kinds[0]]
            below = [each for each in _below(folder / inside, levels) if (each / "config.yaml").is_file()]
        found = [run_record.of_folder(each) for each in below]
        if not found:
            raise SettingError(f"RUN={name!r} holds no run yet")
        return sorted(found, key=_place_in(folder / "comparison.yaml")) if kinds[0] == "comparison.yaml" else found

    def _experiment(self, given: str, name: str, hint: str = "") -> list[RunRecord]:
        tracked = self._store.experiment(name)
        if tracked is None:
            known = nearest_first(name, self._store.experiments())[:5]
            what = "no experiment" if given != name else "neither a folder, nor the id of a run, nor an experiment"
            raise SettingError(f"RUN={given!r} is {what} in {self._store.uri}; experiments: {', '.join(known)}{hint}")
        return self._all_of(tracked, given)

    def _tracked(self, run_id: str) -> list[RunRecord]:
        run = self._store.run(run_id)
        if run is None:
            raise SettingError(f"RUN={run_id!r} is no folder, and no run in {self._store.uri}")
        if run.tags.get("kind") in PARENTS:
            children = sorted(self._store.children(run), key=lambda child: int(child.tags.get("trial", 0)))
            return self._all_of(children, run_id)
        record = self._record(run)
        if record is None:
            raise SettingError(
                f"RUN={run_id!r} has no metric in common with runs of raysim: it has no config.yaml as artifact"
            )
        return [record]

    def _all_of(self, tracked: "Sequence[TrackedRun]", given: str) -> list[RunRecord]:
        """Return the records of runs; parents are passed over, and those of single clients."""
        own = {run.id for run in tracked if _is_a_run(run)}
        wanted = [run for run in tracked if run.id in own and run.parent not in own]
        found = [record for record in map(self._record, wanted) if record is not None]
        if not found:
            raise SettingError(f"RUN={given!r} has no runs of raysim")
        strange = [run for run in tracked if run.id not in own and not run.tags.get("kind") and run.parent not in own]
        left = len(strange) + len(wanted) - len(found)
        if left:
            self.notes.append(f"{given}: left out are {left} runs that raysim has not made")
        return found

    def _record(self, run: "TrackedRun") -> RunRecord | None:
        """Return a run's record; None if it is not raysim's."""
        state = run.tags.get("state") or STATES.get(run.status, run.status.lower())
        with tempfile.TemporaryDirectory() as copied:
            there = self._store.fetch(run.id, ("config.yaml", *RECORDS.get(state, LEFT)), Path(copied))
            if "config.yaml" not in there:
                return None
            record = run_record.of_artifacts(Path(copied), run.id, state, run.tags)
        if "rounds.parquet" in there:
            return record
        histories = {key: self._store.history(run.id, key) for key in IN_MLFLOW}
        return replace(record, rounds=run_record.rounds_from(histories))


def _below(folder: StoragePath, levels: int) -> list[StoragePath]:
    """Return what is in a folder, so many levels below it."""
    inside = folder.children() if folder.is_folder() else []
    return inside if levels == 1 else [each for child in inside for each in _below(child, levels - 1)]


def _place_in(file: StoragePath) -> Callable[[RunRecord], int]:
    """Return what gives a run's place among the rows of a comparison's file."""
    with run_reader.reading(file), file.fetched() as path:
        methods = loader.read_yaml(path, "RUN").get("methods", [])
    labels = [each.get("label") or each.get("name") if isinstance(each, dict) else each for each in methods]
    return lambda record: labels.index(record.label) if record.label in labels else len(labels)


def _is_a_run(run: "TrackedRun") -> bool:
    return not run.tags.get("kind") and "method" in run.tags and "rounds" in run.params
