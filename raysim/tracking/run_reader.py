"""Read one run, by its folder or by its id in MLflow: each part is read when it is first used."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysim.budgets.solver import BudgetSolver
from raysim.config import loader, yaml_text
from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import PrimaryMetric
from raysim.core.errors import SettingError, unknown_name
from raysim.core.json_text import json_in
from raysim.core.storage.atomic import sha256_of
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns, Params
from raysim.population import serialization
from raysim.population.profiles import Devices
from raysim.pruning.plan import ChannelPlan
from raysim.simulation import records
from raysim.simulation.column_types import check_types
from raysim.tracking.run_files import (
    SETTINGS,
    ArtifactFiles,
    FolderFiles,
    RunFiles,
    check_has,
    holds,
    json_object,
    parsing,
    reading,
)
from raysim.tracking.run_lookup import folder_of

if TYPE_CHECKING:
    from raysim.tracking.mlflow_reader import MlflowReader

Content = TypeVar("Content")

SUMMARY = "summary.json"
"""A run writes this file when its last round is over."""
RUN = "run.json"
"""A run writes this file when it begins."""
PLAN, MODEL = "plan.json", "model.safetensors"
OF_METHOD = "method"
"""The table of a method's own, whose columns it chooses."""
TABLES = (*records.TABLES, "partition", OF_METHOD)
DIGESTED = (
    *(f"{table}.parquet" for table in TABLES),
    "devices.parquet",
    PLAN,
    "budgets.json",
    MODEL,
)
"""Files of a finished run whose SHA-256 is in its summary."""
STATES = {
    "FINISHED": "finished",
    "RUNNING": "running",
    "FAILED": "failed",
    "KILLED": "stopped",
    "SCHEDULED": "unfinished",
}
"""States by MLflow's status."""


class RunReader:
    """One run, as `raysim.load` returns it: settings, tables, devices, final model.

    Each part is read when it is first used, and kept. Files in MLflow or in an object store are copied into a
    temporary folder, which is removed by `close`, at the end of a `with` block, or with this object. Tables of a run
    that has not finished have the rounds that were written when the table was first used. If its folder cannot be
    reached, MLflow's metrics are the columns of `rounds`, and other tables that MLflow lacks are refused.

    Every attribute raises `SettingError` where its file is damaged or cannot be read.

    Attributes:
        name: The folder or id of the run, as the user gave it.
    """

    def __init__(self, name: str, files: RunFiles, store: "MlflowReader | None" = None) -> None:
        """Read nothing yet.

        Args:
            name: The folder or id of the run, as the user gave it.
            files: Its files.
            store: The MLflow store of a run that was given by its id.
        """
        self.name, self._files, self._store = name, files, store
        self._tables: dict[str, Columns] = {}
        self._intact: set[str] = set()
        self._typed: set[str] = set()

    @staticmethod
    def of_folder(folder: StoragePath, name: str = "") -> "RunReader":
        """Return the run in a folder.

        Args:
            folder: The folder of the run.
            name: The name that messages use; empty: the folder.
        """
        return RunReader(name or str(folder), FolderFiles(folder))

    @staticmethod
    def of_artifacts(store: "MlflowReader", run_id: str) -> "RunReader":
        """Return the run in MLflow with this id, of which only the artifacts are read."""
        return RunReader(run_id, ArtifactFiles(store, run_id), store)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"raysim.load({self.name!r})"

    def close(self) -> None:
        """Remove the copied files; what was read before stays."""
        self._files.copies.close()

    @cached_property
    def settings(self) -> ExperimentSettings:
        """The experiment."""
        return self.settings_with(())

    def settings_with(self, overrides: Sequence[str]) -> ExperimentSettings:
        """Return the experiment with some settings replaced, as `executor.num_actors=1`."""
        try:
            recorded = loader.mapping_in(self.settings_text, SETTINGS, yaml_text.RECORDED)
            return loader.with_overrides(recorded, tuple(overrides))
        except SettingError as error:
            raise SettingError(f"RUN={self.name!r}: {error}") from None

    @cached_property
    def settings_text(self) -> str:
        """The experiment as config.yaml holds it."""
        with reading(self.name):
            path = self._files.path(SETTINGS)
        with parsing(self.name, SETTINGS):
            return path.read_text(encoding="utf-8")

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The content of run.json: ids, digests, versions; empty if there is none."""
        return self._json_object(RUN)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Costs and results of the run; empty if it has not finished."""
        return self._json_object(SUMMARY)

    def _json_object(self, name: str) -> dict[str, Any]:
        return self._parsed(name, json_object) or {}

    def _parsed(self, name: str, parse: Callable[[Path], Content]) -> Content | None:
        """Return the content of a file; None if there is no such file."""
        path = self.file(name)
        with parsing(self.name, name):
            return None if path is None else parse(path)

    @cached_property
    def folder(self) -> StoragePath | None:
        """The folder with the files of the run; None if it cannot be reached, and only MLflow has files."""
        if isinstance(self._files, FolderFiles):
            return self._files.folder
        with parsing(self.name, RUN):
            folder = storage_path(self.metadata["output_dir"]) if "output_dir" in self.metadata else None
            return folder if folder is not None and holds(folder, self.name) else None

    @property
    def run_id(self) -> str:
        """The id in MLflow; empty if it is not known."""
        if self._store is not None:
            return self.name
        return str(self.summary.get("run_id") or self.metadata.get("run_id") or "")

    @property
    def tracking_uri(self) -> str | None:
        """The MLflow store in which the run was found by its id; None for a run that was given by its folder."""
        return None if self._store is None else self._store.uri

    @cached_property
    def mlflow_status(self) -> str | None:
        """RUNNING, FINISHED, FAILED or KILLED; None for a run that was given by its folder."""
        run = None if self._store is None else self._store.run(self.name)
        return None if run is None else run.status

    @cached_property
    def state(self) -> str:
        """How the run ended: `finished`, `failed`, `stopped`, or `stopped early` by a sweep.

        A run that has not ended is `running`; by its folder alone it is `unfinished`, as one that was killed. A run
        that was interrupted after its last round has a summary, and is finished.
        """
        if self.summary:
            return state_in(self.summary)
        return str(self.metadata.get("state") or STATES.get(self.mlflow_status or "", "unfinished"))

    @property
    def digests(self) -> dict[str, str]:
        """The hashes of `data` and `partition`, as far as they are known."""
        with parsing(self.name, SUMMARY):
            return digests_in(self.metadata, self.summary)

    @property
    def rounds(self) -> Columns:
        """One row per round, arrays `(rounds,)` by name; empty before the first round."""
        return self.table("rounds")

    @property
    def clients(self) -> Columns:
        """One row per round and client that was selected or whose work ended, arrays `(rows,)` by name."""
        return self.table("clients")

    @property
    def channels(self) -> Columns:
        """One row per round and channel: how many clients and examples trained it; see `channel_groups`."""
        return self.table("channels")

    @property
    def partition(self) -> Columns:
        """How many rows of each class clients own: `client`, `label`, `rows`; empty if the run has not finished."""
        return self.table("partition")

    def table(self, name: str, columns: Sequence[str] | None = None) -> Columns:
        """Return a table as arrays by name; empty if nothing of it was written.

        Args:
            name: `rounds`, `clients`, `channels`, `partition` or `method` (a method's own).
            columns: The columns to read; None: all, which are kept.

        Raises:
            SettingError: If there is no such table or column.
        """
        if columns is not None:
            known = self.column_names(name)
            for column in columns if known else ():
                if column not in known:
                    raise unknown_name(f"column of {name}", column, known)
            return self._read(name, columns)
        if name not in self._tables:
            self._tables[name] = self._read(name)
        return self._tables[name]

    def frame(self, name: str, columns: Sequence[str] | None = None) -> Any:
        """Return a table as a pandas DataFrame; needs pandas.

        Args:
            name: `rounds`, `clients`, `channels`, `partition` or `method` (a method's own).
            columns: The columns to read; None: all.

        Raises:
            SettingError: If there is no such table or column.
        """
        return pa.table(self.table(name, columns)).to_pandas()

    def _read(self, name: str, columns: Sequence[str] | None = None) -> Columns:
        path = self.table_file(name)
        with parsing(self.name, f"{name}.parquet"):
            return {} if path is None else records.read(path, columns)

    def column_names(self, table: str) -> list[str]:
        """Return the names of a table's columns; empty if nothing of it was written."""
        path = self.table_file(table)
        with parsing(self.name, f"{table}.parquet"):
            return [] if path is None else list(pq.read_schema(path).names)

    def table_file(self, table: str) -> Path | None:
        """Return a table as a Parquet file on this machine; None if nothing of it was written.

        The table of a run that has not finished is merged from the parts of its rounds.

        Raises:
            SettingError: If there is no such table, or a column of it is of another type than a run writes; or if the
                run has not finished, MLflow has no such table of it, and its folder cannot be reached.
        """
        if table not in TABLES:
            raise unknown_name("table", table, TABLES)
        path = self._table_path(table)
        if path is not None and table not in (OF_METHOD, *self._typed):
            with parsing(self.name, f"{table}.parquet"):
                check_types(pq.read_schema(path))
            self._typed.add(table)
        return path

    def _table_path(self, table: str) -> Path | None:
        whole = f"{table}.parquet"
        with reading(self.name):
            has_finished = self._files.has(SUMMARY) and self._files.has(whole)
        if has_finished:
            return self.file(whole)
        with reading(self.name):
            so_far = self._files.so_far(table)  # goes before a whole table, which may be older than the last round
            if so_far is not None:
                return so_far
            if self._files.has(whole) and not self._files.is_behind:
                return self._files.path(whole)
        if table in ("clients", "channels") and self._is_out_of_reach:
            folder = self.metadata["output_dir"]
            raise SettingError(
                f"RUN={self.name!r} has not finished, and {folder}, where its rounds are, cannot be reached"
            )
        return None

    @property
    def _is_out_of_reach(self) -> bool:
        return self.folder is None and "output_dir" in self.metadata and not self.has(SUMMARY)

    def _verified(self, name: str, path: Path) -> Path:
        """Return the path of a file that has the SHA-256 which the summary records, if it records one."""
        if name in DIGESTED and name not in self._intact and self.has(SUMMARY):
            recorded = self.summary.get("files_sha256", {}).get(name)
            with parsing(self.name, name):
                if recorded is not None and sha256_of(path) != recorded:
                    raise ValueError("it does not have the SHA-256 that summary.json records")
            self._intact.add(name)
        return path

    def has(self, name: str) -> bool:
        """Whether the run has a file of this name."""
        with reading(self.name):
            return self._files.has(name)

    def file(self, name: str) -> Path | None:
        """Return a file of the run on this machine, copied if it is elsewhere; None if there is no such file."""
        with reading(self.name):
            path = self._files.path(name) if self._files.has(name) else None
        return None if path is None else self._verified(name, path)

    @property
    def report_path(self) -> Path | None:
        """The report of the run, an HTML page; None if there is none."""
        return self.file("report.html")

    @cached_property
    def devices(self) -> Devices | None:
        """The devices of all clients; None if the run did not write them."""
        return self._parsed("devices.parquet", serialization.load)

    @cached_property
    def examples(self) -> NDArray[np.int64] | None:
        """The training rows of each client, `(clients,)`; None if the run did not write them."""
        return self._parsed("devices.parquet", serialization.load_examples)

    @property
    def primary(self) -> PrimaryMetric:
        """The metric by which models are compared, whose name is that of columns in `rounds` and `clients`."""
        return self.settings.task.primary_metric

    @property
    def num_classes(self) -> int | None:
        """The classes of the data; None if the run did not write them."""
        found = self.summary.get("num_classes", self.metadata.get("num_classes"))
        return found if isinstance(found, int) else None

    @cached_property
    def channel_groups(self) -> dict[str, int] | None:
        """Names and sizes of the channel groups, in the order of `unit` in `channels`; None if not written."""
        return self._parsed(PLAN, sizes_in)

    @cached_property
    def plan(self) -> ChannelPlan | None:
        """The channel groups of the model, which cut and restore submodels; None if the run did not write them."""
        return self._parsed(PLAN, lambda path: ChannelPlan.from_json(json_object(path)))

    @cached_property
    def budgets(self) -> BudgetSolver | None:
        """The solver of the budgets; None if they were not solved."""
        return self._parsed("budgets.json", solver_in)

    def params(self) -> Params:
        """Return the tensors of the final model, by name.

        Raises:
            SettingError: If the run has none, since it has not finished.
        """
        from safetensors.torch import load_file

        params: Params | None = self._parsed(MODEL, load_file)
        if params is None:
            raise SettingError(f"RUN={self.name!r} has no final model: {MODEL} is missing; allowed: a finished run")
        return params


def load(run: str | Path, tracking_uri: str | None = None) -> RunReader:
    """Open a run to read it: finished or not, of its own, of a comparison or of a sweep.

    Args:
        run: The output folder of the run, a path or a URI; or its id in MLflow.
        tracking_uri: The MLflow store that an id is looked up in; None: MLFLOW_TRACKING_URI if set, else the default.

    Raises:
        SettingError: If there is no such run.
    """
    name = str(run)
    folder = folder_of(name)
    if folder is not None:
        return RunReader.of_folder(folder, name)
    from raysim.tracking.mlflow_reader import MlflowReader  # MLflow takes seconds to import
    from raysim.tracking.mlflow_writer import resolve_uri

    uri = resolve_uri(tracking_uri)
    try:
        store = MlflowReader(uri)
    except SettingError as error:
        raise SettingError(f"RUN={name!r} is no folder, and {error}") from None
    found = RunReader.of_artifacts(store, name)
    if not found.has(SETTINGS):
        raise SettingError(
            f"RUN={name!r} is not a run of raysim, or ended before it began: {SETTINGS} is not among its artifacts"
        )
    if found.has(SUMMARY) or found.folder is None:
        return found
    return RunReader(name, FolderFiles(found.folder), store)  # its folder has more than MLflow


def digests_of_files(folder: StoragePath) -> dict[str, str]:
    """Return the SHA-256 of each file in the folder of a run whose rounds are over, by name."""
    found = {}
    for name in DIGESTED:
        if (folder / name).is_file():
            with (folder / name).fetched() as path:
                found[name] = sha256_of(path)
    return found


def solver_in(budgets: Path) -> BudgetSolver | None:
    """Return the solver in the file budgets.json; None if budgets were not solved."""
    content = json_in(budgets.read_text(encoding="utf-8"))
    return None if content is None else BudgetSolver.from_json(content)


def sizes_in(file: Path) -> dict[str, int]:
    """Return names and sizes of the channel groups in the file plan.json."""
    plan = json_object(file)
    check_has(PLAN, plan, ("groups",))
    return {group["name"]: int(group["size"]) for group in plan["groups"]}


def state_in(summary: Mapping[str, Any]) -> str:
    """Return the state of a run that has a summary."""
    return "failed" if summary.get("failure") else str(summary.get("state") or "finished")


def digests_in(metadata: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of `data` and `partition`, as far as they are known.

    Args:
        metadata: The content of run.json, or the tags of the run in MLflow.
        summary: The content of summary.json; empty if it is not known.
    """
    split = summary.get("split", {})
    found = {what: metadata.get(f"{what}_sha256", split.get(what)) for what in ("data", "partition")}
    return {what: digest for what, digest in found.items() if digest is not None}
