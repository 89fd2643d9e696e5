"""A scenario: all that a run needs besides its state; and the protocols of executor and runner."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from raysim.budgets.solver import BudgetSolver
from raysim.client.assignments import Assignments, Broadcast
from raysim.client.evaluation import Split
from raysim.client.view import Workload
from raysim.clock.modes import ClockRules
from raysim.config.metric import ACCURACY, PrimaryMetric
from raysim.core.tensors import Params, frozen_keys
from raysim.methods import resolve as methods
from raysim.methods.method import Method
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import Mask
from raysim.selection.table import SELECTIONS, SelectionRule
from raysim.server.optimizers import ServerOptimizer
from raysim.server.updates import ClientUpdates
from raysim.simulation.state import FinalState, RoundReport, ServerState, Start, Storage, Totals
from raysim.task.task import ScoreSums

if TYPE_CHECKING:
    from raysim.config.stop import StopSettings


class Executor(Protocol):
    """Trains and evaluates for a round; the results do not depend on where it runs."""

    def train(self, assignments: Assignments, broadcast: Broadcast) -> ClientUpdates:
        """Train clients that start from one version of the model."""
        ...

    def train_versions(self, groups: Sequence[tuple[Assignments, Broadcast]]) -> list[ClientUpdates]:
        """Train groups of clients, each from a version of its own, all at once; one sum of updates per group."""
        ...

    def score(
        self, params: Params, rows: NDArray[np.int64], split: Split = "test", mask: Mask | None = None
    ) -> ScoreSums:
        """Return the sums of the global model's scores on test or validation rows; with a mask, of its submodel's."""
        ...

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64], mask: Mask | None = None) -> Params:
        """Re-estimate the global model's running statistics on training rows; with a mask, those of its submodel."""
        ...

    def incidents(self) -> tuple[str, ...]:
        """Return what was lost and repeated since the last call, a sentence each."""
        ...


@dataclass(frozen=True, slots=True)
class StopRules:
    """When a run ends before its last round: at a value of the primary metric, or at an amount spent.

    The metric is that on the validation rows where there are any, else that on the test rows.

    Attributes:
        primary: Value of the metric; None: none ends the run.
        given: The setting of this value, with it.
        metric: The primary metric.
        simulated_s: Simulated seconds.
        bytes: Bytes up and down.
        energy_j: Joules of the devices.
    """

    primary: float | None = None
    given: str = ""
    metric: PrimaryMetric = ACCURACY
    simulated_s: float = inf
    bytes: float = inf
    energy_j: float = inf

    @staticmethod
    def of(settings: "StopSettings", metric: PrimaryMetric) -> "StopRules":
        """Return the rules of the settings."""
        spent = settings.model_dump(include={"simulated_s", "bytes", "energy_j"}, exclude_none=True)
        return StopRules(settings.value, settings.given, metric, **spent)

    def are_met(self, totals: Totals) -> bool:
        """Whether a run that has spent and reached this much ends."""
        decisive = totals.primary if totals.validation_primary is None else totals.validation_primary
        is_reached = self.primary is not None and decisive is not None and self.metric.reaches(decisive, self.primary)
        return (
            is_reached
            or totals.simulated_s >= self.simulated_s
            or totals.down_bytes + totals.up_bytes >= self.bytes
            or totals.energy_j >= self.energy_j
        )


@dataclass(frozen=True, eq=False)
class Scenario:
    """Everything a run needs besides its state and an executor.

    Attributes:
        workload: Data, population and model: all that clients need.
        method: The pruning method with its options.
        server: How the server steps.
        costs: Costs of submodels.
        cohort_size: Clients per round.
        rounds: Number of rounds.
        score_every: Rounds between two scorings of the global model.
        test_rows: Test rows it is scored on.
        statistics_rows: Training rows its running statistics are re-estimated on, where the method needs it.
        scored_share: Share of a cohort whose submodels are scored.
        diagnose_every: Rounds between two diagnoses of the method; 0: never.
        clock: When a round ends, and whose work counts.
        stop: When the run ends before its last round.
        targets: Values of the primary metric whose first round is recorded.
        budget: Solves budgets. None: each tier has its own.
        selection: The rule that selects clients.
        pack_size: Most clients that are trained together, where they can be.
        validation_rows: Training rows that no client owns, on which it is scored as well; empty: there are none.
        widths: Widths to which it is cut and scored, widest first.
        widths_at_end: Whether that is done at the last evaluation only.
    """

    workload: Workload
    method: Method
    server: ServerOptimizer
    costs: CostTable
    cohort_size: int
    rounds: int
    score_every: int
    test_rows: NDArray[np.int64]
    statistics_rows: NDArray[np.int64]
    scored_share: float
    diagnose_every: int = 0
    clock: ClockRules = field(default_factory=ClockRules)
    stop: StopRules = field(default_factory=StopRules)
    targets: tuple[float, ...] = ()
    budget: BudgetSolver | None = None
    selection: SelectionRule = SELECTIONS["uniform"]
    pack_size: int = 1
    validation_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    widths: tuple[float, ...] = ()
    widths_at_end: bool = True

    @property
    def primary(self) -> PrimaryMetric:
        """The metric by which models are compared."""
        return self.workload.task.primary

    def is_over(self, state: ServerState) -> bool:
        """Whether the run ends with this state."""
        return state.round >= self.rounds or (state.round > 0 and self.stop.are_met(state.totals))

    @property
    def num_divided(self) -> int:
        """Training rows that are divided among the clients: all but those that validate."""
        return len(self.workload.data.train_targets) - len(self.validation_rows)

    @cached_property
    def dense(self) -> "Scenario":
        """The same run with FedAvg's clients, each of which trains the full model."""
        fedavg = methods.resolve("fedavg", {}, self.workload.local)
        return replace(self, method=fedavg, budget=None)

    @cached_property
    def num_examples(self) -> int:
        """Training rows of all clients."""
        return int(self.workload.population.train.counts.sum())

    @cached_property
    def buffers(self) -> frozenset[str]:
        """Keys of the model's buffers."""
        return frozenset(key for key, _ in self.workload.model.named_buffers())

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Keys of the model's parameters that are not trained: clients do not send them."""
        return frozen_keys(self.workload.model)


class Runner(Protocol):
    """Runs the rounds of a scenario; a context that starts and stops what it needs."""

    def __enter__(self) -> "Runner": ...

    def __exit__(self, *_: object) -> None: ...

    def make_ready(self, scenario: Scenario) -> None:
        """Wait until the first round could start; raise SettingError if it cannot."""
        ...

    def run(self, scenario: Scenario, storage: Storage, start: Start = Start()) -> Iterator[RoundReport]:
        """Yield the report of each remaining round."""
        ...

    def stop(self) -> int:
        """Stop after the round in progress and return its number; called from another thread."""
        ...

    def final_state(self) -> FinalState:
        """Return the final state of the run."""
        ...
