"""Where the records of a finished run are: in its folder, or among its artifacts in an MLflow store."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim import config_file, device_storage, records
from raysim.budget_solver import BudgetSolver
from raysim.clock import CohortLoad
from raysim.config import ExperimentSettings
from raysim.errors import SettingError, nearest_first
from raysim.types import Columns, Devices

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
    folder = Path(run)
    if folder.is_dir():
        return _of_folder(folder, run)
    if not re.fullmatch(r"[0-9a-f]{32}", run):
        raise SettingError(f"RUN={run!r} is neither a folder nor the id of a run in MLflow{_nearest(folder)}")
    from raysim import tracking  # MLflow takes seconds to import

    with tempfile.TemporaryDirectory() as copied:
        tracking.download(tracking.resolve_uri(tracking_uri), run, FILES, Path(copied))
        return _of_folder(Path(copied), run)


def _nearest(path: Path) -> str:
    """Return a hint at the folder that may be meant: the one that a file of a run is in, else one beside it."""
    if (path.parent / "config.yaml").is_file():
        return f"; nearest folder: {str(path.parent)!r}"
    beside = [each.name for each in path.parent.glob("*/")] if path.parent.is_dir() else []
    return f"; nearest folder: {str(path.parent / nearest_first(path.name, beside)[0])!r}" if beside else ""


def _of_folder(folder: Path, name: str) -> Recorded:
    if not (folder / "config.yaml").is_file():
        raise SettingError(f"RUN={name!r} holds no run: config.yaml is missing; allowed: the output folder of a run")
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing and missing[0] in AT_THE_END:
        raise SettingError(f"RUN={name!r} has not finished: {missing[0]} is missing; allowed: a finished run")
    if missing:
        raise SettingError(f"RUN={name!r}: {missing[0]} is missing; a run of this version writes it")
    try:
        summary, budgets = (
            json.loads((folder / file).read_text(encoding="utf-8")) for file in ("summary.json", "budgets.json")
        )
        clients, rounds = (records.read(folder / f"{table}.parquet") for table in ("clients", "rounds"))
        devices = device_storage.load(folder / "devices.parquet")
    except (ValueError, OSError) as error:
        raise SettingError(f"RUN={name!r} cannot be read: {str(error).splitlines()[0]}") from None
    for file, there, needed in (
        ("summary.json", summary, SUMMARY_KEYS), ("clients.parquet", clients, CLIENT_COLUMNS),
        ("rounds.parquet", rounds, ROUND_COLUMNS),
    ):  # fmt: skip
        lacking = [each for each in needed if each not in there]
        if lacking:
            raise SettingError(f"RUN={name!r}: {file} does not tell {lacking[0]!r}; a run of this version does")
    solver = None if budgets is None else BudgetSolver.from_json(budgets)
    settings = config_file.load(folder / "config.yaml")
    return Recorded(name, settings, summary, clients, rounds, solver, devices)
