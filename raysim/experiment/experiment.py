"""An experiment that is ready to run."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raysim.config.experiment import ExperimentSettings
from raysim.config.tracking import WITHOUT_MLFLOW
from raysim.core.storage.path import StoragePath
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import Start
from raysim.tracking.curves import LoggedSoFar
from raysim.tracking.run_folder import new_key

if TYPE_CHECKING:
    from raysim.tracking.mlflow_writer import MlflowWriter  # MLflow takes seconds to import


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """An experiment that is ready to run, or to be resumed.

    Attributes:
        settings: The experiment.
        folder: Its files.
        scenario: Its population, model, method and costs.
        tracker: Writes its MLflow run, whose id it has if the experiment is resumed; None: it runs without MLflow.
        start: Where it begins.
        logged: How much of it MLflow has.
        summary: Costs and results of the run, if only its observers have not ended.
        is_locked: Whether the caller has locked its folder.
        is_new: Whether its folder must not hold another run.
        key: Identifies the run in its records, and in MLflow before it has an id there; no two runs have the same.
    """

    settings: ExperimentSettings
    folder: StoragePath
    scenario: Scenario
    tracker: "MlflowWriter | None"
    start: Start = Start()
    logged: LoggedSoFar = field(default_factory=LoggedSoFar)
    summary: dict[str, Any] | None = None
    is_locked: bool = False
    is_new: bool = False
    key: str = field(default_factory=new_key)

    @property
    def mlflow_ids(self) -> dict[str, str]:
        """The entries of `run.json` and `summary.json` that identify its run in MLflow; empty without one."""
        if self.tracker is None:
            return {"run_id": "", "tracking_uri": WITHOUT_MLFLOW, "experiment_id": ""}
        tracker = self.tracker
        return {"run_id": tracker.run_id, "tracking_uri": tracker.uri, "experiment_id": tracker.experiment_id}
