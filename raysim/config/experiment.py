"""Experiment settings: typed, documented, checked for form on construction."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raysim.config.data import Count, DataSettings, ModelSettings, NotNegative, Positive, Settings, Share
from raysim.config.population import (
    BudgetSettings,
    ClockSettings,
    CostSettings,
    PopulationSettings,
    SelectionSettings,
    StopSettings,
)


class MethodSettings(Settings):
    """Which pruning method, and what to change of its own choices (null = the method's default).

    A setting the chosen method does not read is refused. Where a name is asked for, `package.module:name` is
    a function of your own.
    """

    name: str = "ca-hfp"
    """Method: `fedavg`, `fedprox`, `random`, `feddropout`, `magnitude`, `heterofl`, `fedrolex`, `fjord`, `fedmp`,
    `dapperfl`, `fisher`, `scaffold`, `prunefl`, `feddst`, `autoflip`, `ca-hfp`, `ca-hfp+`, or a `Method` of your
    own."""
    fill: str | None = None
    """How the server fills what a client did not train: `global`, `holders`, `zero`, `damped` or your own."""
    fill_gamma: Annotated[float, Field(ge=0, le=1)] | None = None
    """Exponent of the coverage in `fill: damped`, in [0, 1]: 0 = `global`, 1 = `holders`."""
    score: str | None = None
    """Form of CA-HFP's significance: `printed`, `exact`, `robust` or `curvature`; or a score of your own."""
    mask: str | None = None
    """Which channels stay: `top` (the best of each group), `global` (the best of the model), `global-per-flop`,
    `coverage` (chosen for the whole cohort together) or your own."""
    estimator: str | None = None
    """Where gradient and curvature come from: `fisher` (squared minibatch gradients, reported by clients),
    `variation` or `secant` (from displacements, SGD only; clipping and weight decay are part of them) or
    `hutchinson` (Hessian-vector products)."""
    warmup_rounds: Annotated[int, Field(ge=0)] | None = None
    """First rounds with random masks, at least 0."""
    refresh_rounds: Count | None = None
    """Rounds between two rankings of the channels, at least 1."""
    score_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Weight of the past in the running means of gradient and curvature, in [0, 1)."""
    curvature_scale: Positive | None = None
    """Factor lambda of `estimator: variation`, above 0; default: the batch size."""
    curvature_max: Positive | None = None
    """Largest curvature of `estimator: secant`, above 0."""
    hutchinson_draws: Annotated[int, Field(ge=1, le=4)] | None = None
    """Random vectors of `estimator: hutchinson`, 1 to 4."""
    include_consumers: bool | None = None
    """Whether a channel's score also counts the weights that read it in the next layer."""
    hysteresis: NotNegative | None = None
    """Bonus for channels that were kept in the round before, as a share of their score, at least 0."""
    silent_dormant: bool | None = None
    """Whether channels nobody has trained yet stay silent in the global model that is scored and handed out."""
    normalization: Literal["batch", "static", "group"] | None = None
    """`batch` (running statistics averaged over holders), `static` (none in training, re-estimated before scoring)
    or `group` (every BatchNorm replaced by a GroupNorm)."""
    objective: Literal["plain", "proximal", "scaffold"] | None = None
    """Local objective: `plain`, `proximal` (FedProx) or `scaffold` (control variates; twice the bytes)."""
    proximal_mu: NotNegative | None = None
    """Weight of `objective: proximal`, at least 0."""
    options: dict[str, Any] | None = None
    """Options of the method's own, by name, for example `{prune_share: 0.3}` of `autoflip`."""


class ServerSettings(Settings):
    """How the server steps along what aggregation gives; only where somebody trained."""

    optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    """`sgd` (with rate 1: take over the aggregate), `momentum`, `adam` or `yogi`."""
    learning_rate: Positive = 1.0
    """Step size, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum, or first beta of `adam` and `yogi`, in [0, 1); default 0.9."""
    beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Second beta of `adam` and `yogi`, in [0, 1); default 0.99."""
    epsilon: Positive | None = None
    """Adaptivity of `adam` and `yogi`, above 0; default 0.001."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        readers = {"momentum": ("momentum", "adam", "yogi"), "beta2": ("adam", "yogi"), "epsilon": ("adam", "yogi")}
        for name, optimizers in readers.items():
            if getattr(self, name) is not None and self.optimizer not in optimizers:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with optimizer={self.optimizer!r}; "
                    f"it belongs to {', '.join(optimizers)}"
                )
        return self


class TrainingSettings(Settings):
    """Local training of one client."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """`sgd` or `adam`; its state starts empty in every round."""
    learning_rate: Positive = 0.05
    """Step size in round 1, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum, or Adam's first beta, in [0, 1)."""
    weight_decay: NotNegative = 0.0
    """L2 penalty added to the gradient, at least 0."""
    lr_decay: Share = 1.0
    """Factor on the learning rate from round to round, in (0, 1]."""
    clip_norm: Positive | None = None
    """Largest norm of a step's gradient, above 0; null = no clipping."""
    epochs: Count = 1
    """Passes over a client's rows in a round, at least 1."""
    batch_size: Count = 10
    """Rows of one step, at least 1; a last batch of one row joins the one before."""
    precision: Literal["float32", "bf16"] = "float32"
    """`float32`, or `bf16`: layers compute in bfloat16 where PyTorch's autocast says so; weights stay in float32."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """How images lie in memory: `contiguous` or `channels_last`, which convolutions and pooling often run faster on;
    the last bits differ. Dropout layers of `torch.nn` drop the same, other layers that draw may draw differently."""
    pack: Literal["auto"] | Count = "auto"
    """Clients of equal masks and steps that are trained together as one batch of models, at most; 1 = each by itself.
    `auto` packs small models without convolutions, random layers or buffers, where the method asks for no more than
    plain training, by a rule of cohort and model alone; it decides the last bits. `raysim probe` recommends."""


class EvaluationSettings(Settings):
    """When and on what models are scored."""

    every: Count = 1
    """Rounds between two scorings of the global model, at least 1; the last round is always scored."""
    max_examples: Count | None = None
    """Score the global model on at most so many test rows; null = the full test set."""
    client_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of a cohort whose submodels are scored on their own held-out rows, in [0, 1]."""
    targets: list[Share] = Field(default_factory=list)
    """Global test accuracies, each in (0, 1]: the summary tells in which round each was first reached, and after how
    many simulated seconds, bytes, FLOPs and joules."""


class DiagnosticsSettings(Settings):
    """When a method's own predictions are held against what happens."""

    every: Count | None = None
    """Rounds between two diagnoses, at least 1; null = never. They cost time, and change nothing."""


ONLY_ON_RAY = ("num_actors", "client_timeout_s", "address", "dashboard_host")
"""Settings of the executor without effect in this process."""


class ExecutorSettings(Settings):
    """Where clients are trained; never what comes out."""

    kind: Literal["ray", "in-process"] = "ray"
    """`ray` (actors) or `in-process` (one client after another); both give the same bits."""
    num_actors: Count | Literal["clients"] | None = None
    """Client actors, one CPU each; null = one per CPU, also of machines that join; `clients` = one per registered
    client, each with a share of a CPU and about 600 MB of memory. Only for `kind: ray`."""
    client_timeout_s: Positive | None = None
    """Real seconds for the training of one client, above 0: one that takes longer is tried once more by itself, then
    ends the run; null = no limit. Only for `kind: ray`."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cpu` or `cuda`. In-process, clients are trained one after another on one GPU; on Ray each actor takes the
    share of a GPU that the largest client was measured to need. Results are equal to the bit on CPUs only."""
    address: str | None = None
    """Address of a running Ray cluster; null = RAY_ADDRESS if set, else a local Ray of our own."""
    dashboard_host: str | None = None
    """Where the dashboard of a local Ray listens, `127.0.0.1` for this machine alone; null = no dashboard."""


WITHOUT_MLFLOW = "none"
"""Value of `tracking.uri` for a run without MLflow."""


class TrackingSettings(Settings):
    """Where the run is tracked: in MLflow, and by which other observers."""

    uri: str | None = None
    """MLflow tracking URI, without a password; null = MLFLOW_TRACKING_URI if set, else `sqlite:///runs/mlflow.db`;
    `none` = without MLflow: the run is in its folder alone."""
    register_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-][A-Za-z0-9 ._-]*$")] | None = "auto"
    """Name under which the final model gets a version in MLflow's registry: letters, digits, space, `.`, `-` and `_`;
    `auto` = that of the experiment, null = it is logged and not registered."""
    client_runs: bool = False
    """Whether each client, up to the first 200, has a run of its own below this one, with its own curves."""
    system_metrics: bool = True
    """Whether CPU, memory, disk, network and GPU of the machine that runs the command are watched, as `system/`."""
    also: list[str] = Field(default_factory=list)
    """More observers of the run: `tensorboard` (event files in its folder; `pip install 'raysim[tensorboard]'`), or
    dotted paths as `my_pkg:observer`, each of a class or function without arguments that gives a
    `raysim.RunObserver`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        twice = [name for name in self.also if self.also.count(name) > 1]
        if twice:
            raise ValueError(f"also: {twice[0]!r} is given twice; allowed: each once")
        if self.uri == WITHOUT_MLFLOW:
            for name, allowed in (("register_model", ("auto", None)), ("client_runs", (False,))):
                if getattr(self, name) not in allowed:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} has no effect with uri={WITHOUT_MLFLOW!r}, without MLflow"
                    )
        return self


class CheckpointSettings(Settings):
    """When the server state is saved."""

    every: Count = 1
    """Rounds between two checkpoints, at least 1; the last round is always saved."""
    keep: Count = 2
    """How many of the newest checkpoints stay on disk, at least 1."""


class ExperimentSettings(Settings):
    """One experiment: everything that decides what comes out, and where it runs."""

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "raysim"
    """Name of the MLflow experiment and of the run's folder: letters, digits, `.`, `-` and `_`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all randomness, at least 0."""
    rounds: Count
    """Number of rounds, at least 1."""
    data: DataSettings = DataSettings()
    """Which data, from where, and how it is dealt."""
    model: ModelSettings = ModelSettings()
    """Which network."""
    population: PopulationSettings
    """How many clients, on which devices."""
    budget: BudgetSettings = BudgetSettings()
    """How much of the model a client trains."""
    selection: SelectionSettings
    """Who takes part in a round."""
    clock: ClockSettings = ClockSettings()
    """When a round ends, and whose work counts."""
    costs: CostSettings = CostSettings()
    """What energy and machines cost."""
    stop: StopSettings = StopSettings()
    """What ends a run before its last round."""
    method: MethodSettings = MethodSettings()
    """Which pruning method."""
    server: ServerSettings = ServerSettings()
    """How the server steps along what aggregation gives."""
    training: TrainingSettings = TrainingSettings()
    """Local training of one client."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """When and on what models are scored."""
    diagnostics: DiagnosticsSettings = DiagnosticsSettings()
    """When a method's own predictions are held against what happens."""
    executor: ExecutorSettings = ExecutorSettings()
    """Where clients are trained; never what comes out."""
    tracking: TrackingSettings = TrackingSettings()
    """Where the run is tracked: in MLflow, and by which other observers."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """When the server state is saved."""

    @property
    def model_name(self) -> str | None:
        """Name of the final model in MLflow's registry; none = it is not registered."""
        asked = self.tracking.register_model
        return self.experiment if asked == "auto" else asked

    @property
    def split_seed(self) -> int:
        """Seed of all that is drawn before training: rows, owners, held-out rows, devices."""
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
        return self

    def _check_cohort(self) -> None:
        cohort, clients = self.selection.clients_per_round, self.population.clients
        if cohort > clients:
            raise ValueError(
                f"selection.clients_per_round={cohort} is more than population.clients={clients}; "
                f"allowed: 1 to {clients}"
            )
        asked = math.ceil(cohort * (self.clock.over_selection or 1.3) - 1e-9)
        if self.clock.mode == "over-selection" and asked > clients:
            raise ValueError(
                f"clock.over_selection={self.clock.over_selection or 1.3:g} asks {asked} clients for "
                f"selection.clients_per_round={cohort}, more than population.clients={clients}; "
                f"allowed: up to {clients / cohort:.4g}"
            )
        concurrency, buffer_size = self.clock.concurrency or cohort, self.clock.buffer_size or cohort
        if self.clock.mode == "async" and concurrency + buffer_size > clients + 1:
            raise ValueError(
                f"clock.concurrency={concurrency} and clock.buffer_size={buffer_size} are together more than "
                f"population.clients={clients} can fill; allowed: together at most {clients + 1}"
            )
