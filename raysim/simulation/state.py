"""Server state, round report, and what a run has spent and reached."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysim.config.metric import ACCURACY, PrimaryMetric
from raysim.core.formatting import AGAINST_FEDAVG
from raysim.core.log import LogLine
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns, Params
from raysim.pruning.coverage import CoverageSummary
from raysim.task.task import ScoreSums, Task

if TYPE_CHECKING:
    from raysim.clock.work import Work


@dataclass(frozen=True, slots=True)
class Score:
    """The task's primary metric, mean loss, and further metrics over a set of rows."""

    primary: float
    loss: float
    further: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(task: Task, sums: ScoreSums) -> "Score":
        """Return the scores that follow from sums over all rows."""
        further = task.further_of(sums) if task.further.keys() <= sums.terms.keys() else {}
        return Score(task.primary_of(sums), sums.mean_loss, further)


@dataclass(frozen=True, slots=True)
class Reached:
    """When a run first reached a value of the primary metric, and what it had spent by then."""

    primary: float
    round: int
    simulated_s: float
    bytes: int
    train_flops: int
    energy_j: float


@dataclass(frozen=True, slots=True)
class DenseTotals:
    """The costs of FedAvg in the same rounds, and the number of client rounds that would have counted."""

    down_bytes: int
    up_bytes: int
    train_flops: int
    simulated_s: float
    energy_j: float
    client_rounds: int

    @property
    def bytes(self) -> int:
        """Bytes in both directions."""
        return self.down_bytes + self.up_bytes


@dataclass(frozen=True, slots=True)
class Chosen:
    """The round whose model is the best on the validation rows so far; its score on them and on the test rows."""

    round: int
    validation_primary: float
    primary: float


@dataclass(frozen=True, slots=True)
class WidthScore:
    """Score of the global model cut to one width.

    Attributes:
        width: Share of the channels that is kept.
        masks: Number of different masks of this width, over which the scores are averaged.
        primary: The primary metric on the test rows.
        loss: Mean loss on them.
        validation_primary: The primary metric on the validation rows; None: there are none.
    """

    width: float
    masks: int
    primary: float
    loss: float
    validation_primary: float | None = None

    @property
    def name(self) -> str:
        """Its width as part of a metric's name."""
        return width_name(self.width)


def width_name(width: float) -> str:
    """Return a width as part of a metric's name, with at least two decimals and at most four digits.

    >>> [width_name(width) for width in (1.0, 0.5, 0.0625, 1 / 3)]
    ['1.00', '0.50', '0.0625', '0.3333']
    """
    return f"{width:.2f}" if round(width, 2) == width else f"{width:.4g}"


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of a run so far: its costs, and what it reached.

    `fedavg` is what FedAvg would have spent in the same rounds under the same clock, None if that is not known; the
    `preparation_` fields are part of the others: what was spent before round 1; `statistics_flops` are those of the
    forward passes that estimate static BatchNorm's statistics anew. `outcomes` counts the outcomes of the selected
    clients, `empty_rounds` the rounds in which nobody's work counted, `client_rounds` the work that counted.
    The primary metric is that on the test rows but for `validation_primary` and that by which a round is `chosen`;
    None: there are no such rows. `widths` are the last scores of the global model cut to each width, `further` its
    last further metrics by kind of rows.
    """

    down_bytes: int = 0
    up_bytes: int = 0
    train_flops: int = 0
    statistics_flops: int = 0
    client_rounds: int = 0
    pruning_ratio_sum: float = 0.0
    simulated_s: float = 0.0
    preparation_s: float = 0.0
    preparation_bytes: int = 0
    preparation_flops: int = 0
    preparation_j: float = 0.0
    energy_j: float = 0.0
    empty_rounds: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    primary: float | None = None
    best_primary: float | None = None
    reached: tuple[Reached, ...] = ()
    validation_primary: float | None = None
    chosen: Chosen | None = None
    fedavg: DenseTotals | None = None
    widths: tuple[WidthScore, ...] = ()
    further: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def percent_of_fedavg(self) -> dict[str, float | None]:
        """Bytes, FLOPs, simulated seconds and joules in percent of FedAvg's. None: FedAvg's are not known, or 0."""
        dense = self.fedavg
        if dense is None:
            return dict.fromkeys(AGAINST_FEDAVG)
        pairs = zip(AGAINST_FEDAVG, self._spent, _spent_by(dense), strict=True)
        return {name: 100 * (mine / other) if other else None for name, mine, other in pairs}

    @property
    def saved(self) -> dict[str, float] | None:
        """FedAvg's bytes, FLOPs, seconds and joules less one's own, preparation counted. None: not known."""
        if self.fedavg is None:
            return None
        pairs = zip(AGAINST_FEDAVG, self._spent, _spent_by(self.fedavg), strict=True)
        return {name: other - mine for name, mine, other in pairs}

    @property
    def _spent(self) -> tuple[float, ...]:
        flops = self.train_flops + self.statistics_flops
        return (self.down_bytes + self.up_bytes, flops, self.simulated_s, self.energy_j)


def _spent_by(dense: DenseTotals) -> tuple[float, ...]:
    return (dense.bytes, dense.train_flops, dense.simulated_s, dense.energy_j)


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """All that is remembered between rounds; a checkpoint is exactly this value.

    Attributes:
        round: Number of rounds so far.
        params: Global parameters and buffers.
        memory: State that the method and the server's optimizer keep.
        totals: Costs and results of the run so far.
        clients: State that the method keeps of single clients, by id.
        history: State that is kept of every client, `(clients,)` each: battery charges, losses, held frozen parts.
        in_flight: Work that continues between asynchronous rounds, one for each version of the model.
        versions: Parameters and buffers it started from, by the round in which it did.
        fedavg: The clock of FedAvg's clients, without parameters. None: it is not known, or the run's own.
    """

    round: int
    params: Params
    memory: Params = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    clients: Mapping[int, Params] = field(default_factory=dict)
    history: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    in_flight: "tuple[Work, ...]" = ()
    versions: Mapping[int, Params] = field(default_factory=dict)
    fedavg: "ServerState | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class FinalState:
    """The final state of a run, wherever its rounds ran.

    Attributes:
        round: The last round.
        totals: Costs and results of the run so far.
        params: Parameters and buffers as they were trained.
        served_params: The same model as it is scored and handed out; only a method's mask or options make the two
            differ.
        table: The method's own table; without columns if it has none.
    """

    round: int
    totals: Totals
    params: Params
    served_params: Params
    table: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class RoundReport:
    """The report of a round, for its records and for the observers of the run.

    Attributes:
        round: Its number, from 1.
        timestamp_ms: When it ended, in milliseconds since 1970.
        wall_s: Measured seconds that it took.
        round_s: Simulated seconds that it took.
        totals: The totals of the run after it.
        train_loss: Mean loss of the clients' training, weighted by their examples.
        submodel: Score of the submodels on their clients' held-out rows; None: none was scored.
        score: Score of the served model on test rows; None: it was not due.
        validation: The same on validation rows; None: it was not due, or there are none.
        widths: Its scores cut to each width, where they were due.
        primary: The metric by which models are compared; also a column of `clients`.
        coverage: How much of the model was trained.
        clients: One row per member of the cohort, arrays `(rows,)` by name.
        tiers: Names of the tiers, by number.
        channels: One row per channel: the numbers of clients and of examples that trained it.
        diagnostics: Predictions and measurements by name, where they were due.
        figures: The method's own figures by name.
        is_asynchronous: Whether clients start while others train.
        is_saved: Whether a checkpoint covers it.
        driver_bytes: Memory of the process that ran it.
        incidents: Failures while clients were trained, from which the executor recovered.
        remarks: Log lines of it that no terminal has shown yet.
    """

    round: int
    timestamp_ms: int
    wall_s: float
    round_s: float
    totals: Totals
    train_loss: float
    submodel: Score | None
    score: Score | None
    coverage: CoverageSummary
    clients: Columns
    tiers: tuple[str, ...]
    channels: Columns = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    is_asynchronous: bool = False
    is_saved: bool = False
    driver_bytes: int = 0
    incidents: tuple[str, ...] = ()
    remarks: tuple[LogLine, ...] = ()
    validation: Score | None = None
    widths: tuple[WidthScore, ...] = ()
    primary: PrimaryMetric = ACCURACY


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a run leaves its files, and how often it saves its state; `run` is its key, by which they are its own."""

    folder: AnyPath
    every: int
    keep: int
    run: str = ""

    @property
    def checkpoints(self) -> StoragePath:
        """The folder of its checkpoints."""
        return storage_path(self.folder) / "checkpoints"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: after the round of a checkpoint, or at the beginning (0).

    `wall_s` are the measured seconds that its rounds have taken before.
    """

    round: int = 0
    wall_s: float = 0.0


def summary_of(totals: Totals) -> dict[str, Any]:
    """Return what a run has spent, what FedAvg would have, and the per cent of it; None where that is not known.

    `saved` is what is left of FedAvg's, preparation counted; below 0: more was spent.
    """
    spent = {
        name: getattr(totals, name)
        for name in (
            "down_bytes",
            "up_bytes",
            "train_flops",
            "statistics_flops",
            "simulated_s",
            "energy_j",
            "empty_rounds",
        )
    }
    prepared = {
        name: getattr(totals, name)
        for name in ("preparation_s", "preparation_bytes", "preparation_flops", "preparation_j")
    }
    return {
        "pruning_ratio_mean": totals.pruning_ratio_sum / max(1, totals.client_rounds),
        **spent,
        **prepared,
        **{f"{name}_percent_of_fedavg": percent for name, percent in totals.percent_of_fedavg.items()},
        "saved": totals.saved,
        "fedavg": None if totals.fedavg is None else asdict(totals.fedavg),
        "fates": dict(totals.outcomes),
    }


def targets_of(totals: Totals, targets: Sequence[float], metric: PrimaryMetric) -> list[dict[str, Any]]:
    """Return for each target when it was first reached and what had been spent by then; null if never."""
    found = {reached.primary: metric.as_recorded(asdict(reached)) for reached in totals.reached}
    never = dict.fromkeys(("round", "simulated_s", "bytes", "train_flops", "energy_j"))
    return [found.get(target, {metric.name: target, **never}) for target in targets]
