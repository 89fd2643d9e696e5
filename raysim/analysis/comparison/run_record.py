"""The record of a run that is compared: its settings, its rounds, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import ACCURACY, FIELD, PrimaryMetric
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.tracking.run_files import SETTINGS, check_has, reading
from raysim.tracking.run_reader import STATES, RunReader, digests_in

if TYPE_CHECKING:
    from raysim.tracking.mlflow_reader import MlflowReader, TrackedRun

COLUMNS = ("round", FIELD, "simulated_s", "bytes", "energy_j")
"""Columns that a table of rounds must have; `primary` is that of the primary metric."""


@dataclass(frozen=True, slots=True, eq=False)
class RunRecord:
    """The record of a run.

    Attributes:
        name: The folder or id of the run.
        run_id: Its id in MLflow, if it is known.
        settings: The experiment.
        state: Empty for a run that has finished, else `failed`, `stopped`, `running`, `stopped early` or
            `unfinished`.
        digests: Hashes of its `data` and `partition`, as far as they are known.
        rounds: Its table of rounds; empty if none is recorded.
        label: The label of its row in the comparison that it belongs to, if any.
        num_classes: The classes of its data, if they are known.
    """

    name: str
    run_id: str
    settings: ExperimentSettings
    state: str
    digests: Mapping[str, str]
    rounds: Columns
    label: str | None = None
    num_classes: int | None = None

    @property
    def primary(self) -> PrimaryMetric:
        """The metric by which it is scored."""
        return self.settings.task.primary_metric

    @property
    def num_rounds(self) -> int:
        """The number of recorded rounds."""
        return len(self.rounds["round"]) if self.rounds else 0

    @property
    def progress(self) -> str:
        """The state with the number of rounds; empty for a run that has finished."""
        return f"{self.state} after round {self.num_rounds} of {self.settings.rounds}" if self.state else ""


def of_folder(folder: StoragePath) -> RunRecord:
    """Return the record of the run in a folder, whether it has finished or not.

    Raises:
        SettingError: If it cannot be read.
    """
    with RunReader.of_folder(folder) as run:
        label = run.summary.get("label")
        return RunRecord(
            run.name,
            run.run_id,
            run.settings,
            _state(run.state),
            run.digests,
            _rounds(run),
            label,
            run.num_classes,
        )


def of_tracked(store: "MlflowReader", tracked: "TrackedRun") -> RunRecord | None:
    """Return the record of a run in MLflow; None if raysim did not make it.

    Raises:
        SettingError: If it cannot be read.
    """
    known = tracked.tags.get("state") or STATES.get(tracked.status, tracked.status.lower())
    with RunReader.of_artifacts(store, tracked.id) as run:
        if not run.has(SETTINGS):
            return None
        state = run.state if known in ("failed", "stopped") else known  # after its last round it may have a summary
        digests, label = digests_in(tracked.tags, {}), tracked.tags.get("label")
        return RunRecord(
            run.name, run.name, run.settings, _state(state), digests, _rounds(run), label, run.num_classes
        )


def has_validation(rounds: Columns, metric: PrimaryMetric = ACCURACY) -> bool:
    """Whether a table of rounds has scores on validation rows."""
    name = metric.recorded("validation_primary")
    return name in rounds and not np.isnan(rounds[name].astype(np.float64)).all()


def by_validation(rounds: Columns, metric: PrimaryMetric = ACCURACY) -> Columns:
    """Return a table of rounds whose scores are those on the validation rows, if it has any."""
    name = metric.recorded("validation_primary")
    return {**rounds, metric.name: rounds[name]} if has_validation(rounds, metric) else rounds


def _state(state: str) -> str:
    return "" if state == "finished" else state


def _rounds(run: RunReader) -> Columns:
    if run.rounds:
        with reading(run.name):
            check_has("rounds.parquet", run.rounds, map(run.primary.recorded, COLUMNS))
    return run.rounds
