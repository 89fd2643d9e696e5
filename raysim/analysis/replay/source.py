"""Where the records of a finished run are: in its folder, or among its artifacts in an MLflow store."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.budgets.solver import BudgetSolver
from raysim.clock.timing import CohortLoad
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.population import serialization
from raysim.population.profiles import Devices
from raysim.simulation import records
from raysim.tracking import run_reader

AT_THE_END = ("summary.json", "clients.parquet", "rounds.parquet")
FILES = ("config.yaml", *AT_THE_END, "budgets.json", "devices.parquet")
CLIENT_COLUMNS = (
    "round", "client", "tier", "fate", "started_round", "start_s", "lasts_s", "keep_ratio", "limited_by", "examples",
    "pruning_ratio", "total_s", "energy_j", "down_bytes", "up_bytes",
    *(f"planned_{name}" for name in (*CohortLoad.__slots__, "epochs")),
)  # fmt: skip
ROUND_COLUMNS = ("round", "round_s", "simulated_s", "accuracy", "loss")
SUMMARY_KEYS = ("full_model", "simulated_s", "down_bytes", "up_bytes", "train_flops", "energy_j", "preparation_j")


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A finished run as it was written down.

    Attributes:
        name: Folder or run id.
        settings: The experiment.
        summary: What it reached and spent.
        clients: One row per client that was asked or whose work ended, in the order of rounds and ids.
        rounds: One row per round.
        solver: How budgets were solved; none = they were not.
        devices: Devices of all clients, as the run had dealt them.
    """

    name: str
    settings: ExperimentSettings
    summary: Mapping[str, Any]
    clients: Columns
    rounds: Columns
    solver: BudgetSolver | None
    devices: Devices


def read(run: str, tracking_uri: str | None = None) -> Recorded:
    """Read a run's records.

    Args:
        run: Its output folder, or its id in MLflow.
        tracking_uri: The MLflow store; none = MLFLOW_TRACKING_URI if set, else the default one.

    Raises:
        SettingError: If there is no such run, or it has not finished.
    """
    folder = run_reader.folder_of(run)
    if folder is not None and folder.path is not None:
        return _of_folder(folder.path, run)
    with _copied(folder) if folder is not None else _downloaded(run, tracking_uri) as copied:
        return _of_folder(copied, run)


@contextmanager
def _copied(folder: StoragePath) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as copied, run_reader.reading(folder):
        for name in FILES:
            if (folder / name).is_file():
                (Path(copied) / name).write_bytes((folder / name).read())
        yield Path(copied)


@contextmanager
def _downloaded(run_id: str, tracking_uri: str | None) -> Iterator[Path]:
    from raysim.tracking import mlflow_writer  # MLflow takes seconds to import

    with run_reader.artifacts(run_id, mlflow_writer.resolve_uri(tracking_uri), FILES) as copied:
        yield copied


def _of_folder(folder: Path, name: str) -> Recorded:
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing and missing[0] in AT_THE_END:
        raise SettingError(f"RUN={name!r} has not finished: {missing[0]} is missing; allowed: a finished run")
    if missing:
        raise SettingError(f"RUN={name!r}: {missing[0]} is missing; a run of this version writes it")
    with run_reader.reading(name):
        summary = run_reader.json_of(storage_path(folder / "summary.json"))
        budgets = json.loads((folder / "budgets.json").read_text(encoding="utf-8"))
        clients, rounds = (records.read(folder / f"{table}.parquet") for table in ("clients", "rounds"))
        devices = serialization.load(folder / "devices.parquet")
        run_reader.check_told("summary.json", summary, SUMMARY_KEYS)
        run_reader.check_told("clients.parquet", clients, CLIENT_COLUMNS)
        run_reader.check_told("rounds.parquet", rounds, ROUND_COLUMNS)
    solver = None if budgets is None else BudgetSolver.from_json(budgets)
    settings = run_reader.settings_of(folder / "config.yaml", name)
    return Recorded(name, settings, summary, clients, rounds, solver, devices)
