"""Server state, round report, and what a run has spent and reached."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
    """Accuracy, which stands for the task's primary metric, and mean loss over a set of rows."""

    accuracy: float
    loss: float

    @staticmethod
    def of(task: Task, sums: ScoreSums) -> "Score":
        """Return the scores that follow from sums over all rows."""
        return Score(task.primary_of(sums), sums.mean_loss)


@dataclass(frozen=True, slots=True)
class Reached:
    """When a run first reached an accuracy, and what it had spent by then."""

    accuracy: float
    round: int
    simulated_s: float
    bytes: int
    train_flops: int
    energy_j: float


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of a run so far: its costs, and the accuracy that it reached.

    The `fedavg_` fields are what dense clients would have spent on the same work; the `preparation_` fields are
    part of the others: what was spent before round 1. `outcomes` counts the outcomes of the selected clients,
    `empty_rounds` the rounds in which nobody's work counted.
    """

    down_bytes: int = 0
    up_bytes: int = 0
    train_flops: int = 0
    fedavg_down_bytes: int = 0
    fedavg_up_bytes: int = 0
    fedavg_train_flops: int = 0
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
    accuracy: float | None = None
    best_accuracy: float | None = None
    reached: tuple[Reached, ...] = ()

    @property
    def bytes_percent_of_fedavg(self) -> float:
        """All bytes moved, in percent of what dense clients would have moved."""
        dense = self.fedavg_down_bytes + self.fedavg_up_bytes
        return 100 * (self.down_bytes + self.up_bytes) / max(1, dense)

    @property
    def flops_percent_of_fedavg(self) -> float:
        """All FLOPs trained, in percent of what dense clients would have trained."""
        return 100 * self.train_flops / max(1, self.fedavg_train_flops)


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """All that is remembered between rounds; a checkpoint is exactly this value.

    Attributes:
        round: Number of rounds so far.
        params: Global parameters and buffers.
        memory: State that the method and the server's optimizer keep.
        totals: Costs and results of the run so far.
        clients: State that the method keeps of single clients, by id.
        history: State that is kept of every client, `(clients,)` each: battery charges, last losses.
        in_flight: Work that continues between asynchronous rounds, one for each version of the model.
        versions: Parameters and buffers it started from, by the round in which it did.
    """

    round: int
    params: Params
    memory: Params = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    clients: Mapping[int, Params] = field(default_factory=dict)
    history: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    in_flight: "tuple[Work, ...]" = ()
    versions: Mapping[int, Params] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class FinalState:
    """The final state of a run, wherever its rounds ran.

    Attributes:
        round: The last round.
        totals: Costs and results of the run so far.
        params: Parameters and buffers as they were trained.
        served_params: The same model as it is scored and handed out; only a method's options make the two differ.
    """

    round: int
    totals: Totals
    params: Params
    served_params: Params


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
        coverage: How much of the model was trained.
        clients: One row per member of the cohort, arrays `(rows,)` by name.
        tiers: Names of the tiers, by number.
        channels: One row per channel: the numbers of clients and of examples that trained it.
        diagnostics: Predictions and measurements by name, where they were due.
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
    is_asynchronous: bool = False
    is_saved: bool = False
    driver_bytes: int = 0
    incidents: tuple[str, ...] = ()
    remarks: tuple[LogLine, ...] = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a run leaves its files, and how often it saves its state."""

    folder: AnyPath
    every: int
    keep: int

    def part(self, name: str) -> StoragePath:
        """Return a folder of the run's: `checkpoints`, `channels`, `clients` or `rounds`."""
        return storage_path(self.folder) / name


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: after the round of a checkpoint, or at the beginning (0).

    `wall_s` are the measured seconds that its rounds have taken before.
    """

    round: int = 0
    wall_s: float = 0.0


FIRST = Start()
"""The beginning."""


def summary_of(totals: Totals) -> dict[str, Any]:
    """Return what a run has spent, with its shares of FedAvg's bytes and FLOPs in percent."""
    spent = {
        name: getattr(totals, name)
        for name in ("down_bytes", "up_bytes", "train_flops", "simulated_s", "energy_j", "empty_rounds")
    }
    prepared = {
        name: getattr(totals, name)
        for name in ("preparation_s", "preparation_bytes", "preparation_flops", "preparation_j")
    }
    return {
        "pruning_ratio_mean": totals.pruning_ratio_sum / max(1, totals.client_rounds),
        **spent,
        **prepared,
        "bytes_percent_of_fedavg": totals.bytes_percent_of_fedavg,
        "flops_percent_of_fedavg": totals.flops_percent_of_fedavg,
        "fates": dict(totals.outcomes),
    }


def targets_of(totals: Totals, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Return for each target accuracy when it was first reached and what had been spent by then; null if never."""
    found = {reached.accuracy: asdict(reached) for reached in totals.reached}
    never = dict.fromkeys(("round", "simulated_s", "bytes", "train_flops", "energy_j"))
    return [found.get(target, {"accuracy": target, **never}) for target in targets]
