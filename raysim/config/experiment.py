"""Settings of a whole experiment, one section per module of this package."""

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from raysim.config.budget import BudgetSettings
from raysim.config.checkpoint import CheckpointSettings
from raysim.config.clock import ClockSettings
from raysim.config.compression import CompressionSettings
from raysim.config.costs import CostSettings
from raysim.config.data import DataSettings
from raysim.config.diagnostics import DiagnosticsSettings
from raysim.config.evaluation import EvaluationSettings
from raysim.config.executor import ExecutorSettings
from raysim.config.method import MethodSettings
from raysim.config.model import ModelSettings
from raysim.config.population import PopulationSettings
from raysim.config.selection import SelectionSettings
from raysim.config.server import ServerSettings
from raysim.config.settings import Count, Seed, Settings
from raysim.config.stop import StopSettings
from raysim.config.task import TaskSettings
from raysim.config.tracking import TrackingSettings
from raysim.config.training import TrainingSettings

ONLY_ON_RAY = ("num_actors", "client_timeout_s", "address", "dashboard_host")
"""Settings of the executor that have no effect in-process."""


class ExperimentSettings(Settings):
    """One experiment: all settings that decide its results, and where it runs."""

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")] = "raysim"
    """Name of the MLflow experiment and of the run's folder: up to 200 letters, digits, `.`, `-` and `_`."""
    seed: Seed = 0
    """Seed of all randomness, at least 0."""
    rounds: Count
    """Number of rounds, at least 1."""
    data: DataSettings = DataSettings()
    """Which data, from where, and how its rows are divided among the clients."""
    model: ModelSettings = ModelSettings()
    """Which network is trained."""
    population: PopulationSettings
    """How many clients, on which devices."""
    budget: BudgetSettings = BudgetSettings()
    """How much of the model a client trains."""
    selection: SelectionSettings
    """Which clients take part in a round."""
    clock: ClockSettings = ClockSettings()
    """When a round ends, and which updates count."""
    costs: CostSettings = CostSettings()
    """Prices of energy and machines."""
    stop: StopSettings = StopSettings()
    """Conditions that end a run before its last round."""
    method: MethodSettings = MethodSettings()
    """Which pruning method."""
    server: ServerSettings = ServerSettings()
    """How the server applies the aggregated update."""
    training: TrainingSettings = TrainingSettings()
    """Local training of one client."""
    compression: CompressionSettings = CompressionSettings()
    """How clients make their updates smaller before they send them."""
    task: TaskSettings = TaskSettings()
    """The task that models learn: the loss that is minimised, and the metrics that score them."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """When, and on which rows, models are scored."""
    diagnostics: DiagnosticsSettings = DiagnosticsSettings()
    """When a method's predictions are compared with measured changes of the loss."""
    executor: ExecutorSettings = ExecutorSettings()
    """Where clients are trained; this changes no result."""
    tracking: TrackingSettings = TrackingSettings()
    """Where MLflow stores the run, and which parts of it."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """When the server state is saved."""

    @property
    def model_name(self) -> str | None:
        """Name of the final model in MLflow's registry. None: it is not registered."""
        name = self.tracking.register_model
        return self.experiment if name == "auto" else name

    @property
    def split_seed(self) -> int:
        """Seed of everything that is drawn before training: rows, their owners, held-out rows, devices."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_cohort()
        for name in ONLY_ON_RAY if self.executor.kind == "in-process" else ():
            if getattr(self.executor, name):
                raise ValueError(
                    f"executor.{name}={getattr(self.executor, name)!r} has no effect with "
                    "executor.kind='in-process'; allowed: null, or executor.kind='ray'"
                )
        if self.executor.device == "cuda" and self.executor.num_actors == "clients":
            raise ValueError(
                "executor.num_actors='clients' is not allowed with executor.device='cuda'; allowed: a number, or null"
            )
        if self.executor.kind == "in-process" and self.data.on_nodes:
            raise ValueError(
                "data.on_nodes=True has no effect with executor.kind='in-process'; allowed: false, or "
                "executor.kind='ray'"
            )
        if self.task.client_metrics and not (self.evaluation.client_share and self.data.heldout_share):
            raise ValueError(
                "task.client_metrics=True has no effect without data.heldout_share and evaluation.client_share, the "
                "rows and the clients that it scores"
            )
        return self

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        """Check that values of the primary metric can be reached, and not by every model."""
        metric = self.task.primary_metric
        if self.stop.accuracy is not None and metric.name != "accuracy":
            raise ValueError(
                f"stop.accuracy={self.stop.accuracy:g} is not allowed: the primary metric is {metric.name!r}; "
                "allowed: stop.primary"
            )
        stops = [] if self.stop.primary is None else [("stop.primary", self.stop.primary)]
        targets = [(f"evaluation.targets.{index}", value) for index, value in enumerate(self.evaluation.targets)]
        for name, value in stops + targets:
            if not metric.allows(value):
                raise ValueError(
                    f"{name}={value:g} is not allowed: it is a value of {metric.name!r}; allowed: {metric.allowed}"
                )
        return self

    def _check_cohort(self) -> None:
        cohort, clients = self.selection.clients_per_round, self.population.clients
        if cohort > clients:
            raise ValueError(
                f"selection.clients_per_round={cohort} is more than population.clients={clients}; "
                f"allowed: 1 to {clients}"
            )
        selected = math.ceil(cohort * (self.clock.over_selection or 1.3) - 1e-9)  # at most 2^31 * 1e6
        if self.clock.mode == "over-selection" and selected > clients:
            raise ValueError(
                f"clock.over_selection={self.clock.over_selection or 1.3:g} selects {selected} clients for "
                f"selection.clients_per_round={cohort}, more than population.clients={clients}; "
                f"allowed: up to {clients / cohort:.4g}"
            )
        concurrency, buffer_size = self.clock.concurrency or cohort, self.clock.buffer_size or cohort
        if self.clock.mode == "async" and concurrency + buffer_size > clients + 1:
            raise ValueError(
                f"clock.concurrency={concurrency} and clock.buffer_size={buffer_size} are together more than "
                f"population.clients={clients} can fill; allowed: together at most {clients + 1}"
            )
