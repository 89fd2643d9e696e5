"""Read the rounds of a run from its metrics in MLflow, as far as these have them."""

from typing import TYPE_CHECKING

import numpy as np

from raysim.config.metric import ACCURACY, TASK_METRICS, PrimaryMetric, name_of
from raysim.core.tensors import Columns

if TYPE_CHECKING:
    from raysim.tracking.mlflow_reader import MlflowReader

JOULES = "energy/total_j"
COLUMN_OF = {
    "clock/simulated_s": "simulated_s",
    "traffic/total_bytes": "bytes",
    JOULES: "energy_j",
    "primary/global": "primary",
    "primary/validation": "validation_primary",
    "pruning_ratio/mean": "pruning_ratio/mean",
    "clients/counted": "clients/counted",
}
"""Columns of the table of rounds, by metric; `primary` stands for the name of the primary metric."""


def rounds_in_metrics(store: "MlflowReader", run_id: str) -> Columns:
    """Return the columns of the table of rounds that metrics have, `(rounds,)` by name; empty before the first round.

    Raises:
        SettingError: If the store cannot be read.
    """
    primary = _metric_of(store, run_id)
    column_of = {primary.recorded(key): primary.recorded(column) for key, column in COLUMN_OF.items()}
    histories = {key: store.history(run_id, key) for key in column_of}
    steps = sorted(histories["clock/simulated_s"])
    if not steps:
        return {}
    columns: Columns = {"round": np.array(steps)}
    for key, column in column_of.items():
        missing = 0.0 if key == JOULES else np.nan  # joules are logged from the first that are spent
        columns[column] = np.array([histories[key].get(step, missing) for step in steps])
    return columns


def _metric_of(store: "MlflowReader", run_id: str) -> PrimaryMetric:
    """Return the primary metric of a run by its parameters; only its name counts."""
    run = store.run(run_id)
    params = {} if run is None else run.params
    given = params.get("task.primary", "None")
    if given != "None":
        return PrimaryMetric(name_of(given))
    return TASK_METRICS.get(params.get("task.name", "classification"), (ACCURACY,))[0]
