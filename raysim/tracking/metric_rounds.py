"""Read the rounds of a run from its metrics in MLflow, as far as these have them."""

from typing import TYPE_CHECKING

import numpy as np

from raysim.core.tensors import Columns

if TYPE_CHECKING:
    from raysim.tracking.mlflow_reader import MlflowReader

JOULES = "energy/total_j"
COLUMN_OF = {
    "clock/simulated_s": "simulated_s",
    "traffic/total_bytes": "bytes",
    JOULES: "energy_j",
    "accuracy/global": "accuracy",
    "accuracy/validation": "validation_accuracy",
    "pruning_ratio/mean": "pruning_ratio/mean",
    "clients/counted": "clients/counted",
}
"""Columns of the table of rounds, by metric."""


def rounds_in_metrics(store: "MlflowReader", run_id: str) -> Columns:
    """Return the columns of the table of rounds that metrics have, `(rounds,)` by name; empty before the first round.

    Raises:
        SettingError: If the store cannot be read.
    """
    histories = {key: store.history(run_id, key) for key in COLUMN_OF}
    steps = sorted(histories["clock/simulated_s"])
    if not steps:
        return {}
    columns: Columns = {"round": np.array(steps)}
    for key, column in COLUMN_OF.items():
        missing = 0.0 if key == JOULES else np.nan  # joules are logged from the first that are spent
        columns[column] = np.array([histories[key].get(step, missing) for step in steps])
    return columns
