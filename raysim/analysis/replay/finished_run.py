"""Read the records of a finished run that a replay needs, and check that they are complete."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.budgets.solver import BudgetSolver
from raysim.clock.timing import CohortLoad
from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import FIELD, PrimaryMetric
from raysim.core.errors import SettingError
from raysim.core.tensors import Columns
from raysim.population.profiles import Devices
from raysim.tracking import run_reader
from raysim.tracking.run_files import check_has, reading

AT_THE_END = ("summary.json", "clients.parquet", "rounds.parquet")
"""Files that a run writes when it has finished."""
FILES = ("config.yaml", *AT_THE_END, "budgets.json", "devices.parquet")
CLIENT_COLUMNS = (
    "round", "client", "tier", "fate", "started_round", "start_s", "lasts_s", "keep_ratio", "limited_by", "examples",
    "pruning_ratio", "total_s", "energy_j", "down_bytes", "up_bytes",
    *(f"planned_{name}" for name in (*CohortLoad.__slots__, "epochs")),
)  # fmt: skip
ROUND_COLUMNS = ("round", "round_s", "simulated_s", FIELD, "loss")
"""Columns of the table of rounds; `primary` is that of the primary metric."""
SUMMARY_KEYS = ("full_model", "simulated_s", "down_bytes", "up_bytes", "train_flops", "energy_j", "preparation_j")


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRun:
    """The records of a finished run.

    Attributes:
        name: The folder or id of the run, as the user gave it.
        settings: The experiment.
        summary: Costs and results of the run.
        clients: One row per client that was selected or whose work ended, in the order of rounds and ids.
        rounds: One row per round.
        solver: The solver of the budgets; None if they were not solved.
        devices: The devices of all clients.
        examples: The training rows of each client, `(clients,)`. None: they were not recorded.
    """

    name: str
    settings: ExperimentSettings
    summary: Mapping[str, Any]
    clients: Columns
    rounds: Columns
    solver: BudgetSolver | None
    devices: Devices
    examples: NDArray[np.int64] | None = None

    @property
    def primary(self) -> PrimaryMetric:
        """The metric by which models are compared."""
        return self.settings.task.primary_metric


def read(run: str, tracking_uri: str | None = None) -> FinishedRun:
    """Read the records of a finished run.

    Args:
        run: The output folder of the run, or its id in MLflow.
        tracking_uri: The MLflow store; None: MLFLOW_TRACKING_URI if set, else the default.

    Raises:
        SettingError: If there is no such run, it has not finished, or its records are damaged or incomplete.
    """
    with run_reader.load(run, tracking_uri) as found:
        missing = [file for file in FILES if not found.has(file)]
        if missing:
            raise _incomplete(run, missing[0])
        if found.devices is None:
            raise _incomplete(run, "devices.parquet")
        with reading(run):
            check_has("summary.json", found.summary, SUMMARY_KEYS)
            check_has("clients.parquet", found.clients, CLIENT_COLUMNS)
            check_has("rounds.parquet", found.rounds, map(found.primary.recorded, ROUND_COLUMNS))
        return FinishedRun(
            run,
            found.settings,
            found.summary,
            found.clients,
            found.rounds,
            found.budgets,
            found.devices,
            found.examples,
        )


def _incomplete(run: str, file: str) -> SettingError:
    if file in AT_THE_END:
        return SettingError(f"RUN={run!r} has not finished: {file} is missing; allowed: a finished run")
    return SettingError(f"RUN={run!r}: {file} is missing; a run of this version writes it")
