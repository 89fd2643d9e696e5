"""Find the runs that names stand for: folders, ids in MLflow, experiments, comparisons and sweeps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raysim.analysis.comparison import run_record
from raysim.analysis.comparison.run_record import RunRecord, by_validation, has_validation
from raysim.config import loader, yaml_text
from raysim.config.metric import ACCURACY
from raysim.core.errors import SettingError, nearest_first
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.tracking.run_files import SETTINGS, reading
from raysim.tracking.run_lookup import is_id, nearest

if TYPE_CHECKING:
    from raysim.tracking.mlflow_reader import MlflowReader, TrackedRun

EXPERIMENT = "experiment:"
"""Before the name of an MLflow experiment, which may be the name of a folder, too."""
FOLDERS_OF = {"comparison.yaml": ("runs", 1), "sweep.yaml": ("trials", 2)}
"""Files that identify the folder of a comparison or sweep, with the folder of its runs and their depth in it."""
PARENTS = ("comparison", "sweep")
"""Kinds of MLflow runs that are replaced by their children."""


class Sources:
    """Finds runs; MLflow is imported, and its store opened, only when it is needed."""

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
        """Return the runs that names stand for, each once.

        Args:
            names: Each the folder or id of a run, the folder or parent run of a comparison or a sweep, or an
                experiment.

        Raises:
            SettingError: If a name stands for nothing, or for something that cannot be compared.
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
        with reading(folder):
            is_folder = folder.is_folder()
        if is_folder:
            return self._folder(folder, name)
        hint = nearest(folder, (SETTINGS, *FOLDERS_OF))
        if "/" in name:
            raise SettingError(
                f"RUN={name!r} is neither a folder nor the id of a run in MLflow, nor an experiment there{hint}"
            )
        try:
            _ = self._store
        except SettingError as error:
            raise SettingError(f"RUN={name!r} is no folder, and {error}{hint}") from None
        return self._tracked(name) if is_id(name) else self._experiment(name, name, hint)

    def _folder(self, folder: StoragePath, name: str) -> list[RunRecord]:
        with reading(folder):
            kinds = [file for file in FOLDERS_OF if (folder / file).is_file()]
            if not kinds and not (folder / SETTINGS).is_file():
                raise SettingError(
                    f"RUN={name!r} holds no run: config.yaml is missing; allowed: the output folder of a run, of "
                    "jobs/compare_methods.py or of jobs/sweep.py"
                )
        if not kinds:
            return [run_record.of_folder(folder)]
        with reading(folder):
            inside, levels = FOLDERS_OF[kinds[0]]
            below = [each for each in _below(folder / inside, levels) if (each / SETTINGS).is_file()]
        found = [run_record.of_folder(each) for each in below]
        if not found:
            raise SettingError(f"RUN={name!r} holds no run yet")
        if kinds[0] == "sweep.yaml":
            return self._trials(found, name)
        return sorted(found, key=_row_index(folder / "comparison.yaml"))

    def _trials(self, records: list[RunRecord], given: str) -> list[RunRecord]:
        """Return the trials of a sweep by the rows that choose among them, with a note on which these are."""
        scores = "accuracies" if all(each.primary.name == ACCURACY.name for each in records) else "scores"
        if not any(has_validation(each.rounds, each.primary) for each in records):
            self.notes.append(
                f"{given}: a best trial that is chosen by these test {scores} is too good by that choice; "
                "`data.validation_share` takes other rows to choose by"
            )
            return records
        self.notes.append(f"{given}: {scores} of trials are of the validation rows, not of the test rows")
        return [replace(each, rounds=by_validation(each.rounds, each.primary)) for each in records]

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
            found = self._all_of(children, run_id)
            return self._trials(found, run_id) if run.tags.get("kind") == "sweep" else found
        record = run_record.of_tracked(self._store, run)
        if record is None:
            raise SettingError(
                f"RUN={run_id!r} has no metric in common with runs of raysim: it has no config.yaml as artifact"
            )
        return [record]

    def _all_of(self, tracked: "Sequence[TrackedRun]", given: str) -> list[RunRecord]:
        """Return the records of runs, without parents and without the runs of single clients."""
        own = {run.id for run in tracked if _is_a_run(run)}
        wanted = [run for run in tracked if run.id in own and run.parent not in own]
        records = [run_record.of_tracked(self._store, run) for run in wanted]
        found = [record for record in records if record is not None]
        if not found:
            raise SettingError(f"RUN={given!r} has no runs of raysim")
        foreign = [run for run in tracked if run.id not in own and not run.tags.get("kind") and run.parent not in own]
        left = len(foreign) + len(wanted) - len(found)
        if left:
            self.notes.append(f"{given}: left out are {left} runs that raysim did not make")
        return found


def _below(folder: StoragePath, levels: int) -> list[StoragePath]:
    """Return what a folder contains, so many levels below it."""
    inside = folder.children() if folder.is_folder() else []
    return inside if levels == 1 else [each for child in inside for each in _below(child, levels - 1)]


def _row_index(file: StoragePath) -> Callable[[RunRecord], int]:
    """Return a function that gives the index of a run's row in a comparison's file."""
    with reading(file), file.fetched() as path:
        methods = loader.read_yaml(path, "RUN", yaml_text.RECORDED).get("methods", [])
    labels = [each.get("label") or each.get("name") if isinstance(each, dict) else each for each in methods]
    return lambda record: labels.index(record.label) if record.label in labels else len(labels)


def _is_a_run(run: "TrackedRun") -> bool:
    return not run.tags.get("kind") and "method" in run.tags and "rounds" in run.params
