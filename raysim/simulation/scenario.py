"""What a run is: its workload, method and costs; and who runs the work of a round."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raysim.budgets.solver import BudgetSolver
from raysim.client.assignments import Assignments, Broadcast
from raysim.client.view import Workload
from raysim.clock.timing import ClockRules
from raysim.core.tensors import Params
from raysim.methods.method import Method
from raysim.pruning.costs import CostTable
from raysim.selection.table import SELECTIONS, SelectionRule
from raysim.server.optimizers import ServerOptimizer
from raysim.server.updates import ClientUpdates
from raysim.simulation.state import FIRST, FinalState, RoundReport, Score, ServerState, Start, Storage, Totals


class Executor(Protocol):
    """Runs what a round asks for; what comes out does not depend on where."""

    def train(self, tasks: Assignments, broadcast: Broadcast) -> ClientUpdates:
        """Train some clients that start from one version of the model."""
        ...

    def train_versions(self, groups: Sequence[tuple[Assignments, Broadcast]]) -> list[ClientUpdates]:
        """Train groups of clients, each from a version of its own, all at once; one contribution per group."""
        ...

    def score(self, params: Params, rows: NDArray[np.int64]) -> Score:
        """Score the global model on test rows."""
        ...

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64]) -> Params:
        """Re-estimate the global model's running statistics on training rows."""
        ...

    def incidents(self) -> tuple[str, ...]:
        """Return what went wrong and was made good since this was last asked, a sentence each."""
        ...


@dataclass(frozen=True, slots=True)
class StopRules:
    """What ends a run before its last round: an accuracy, or what has been spent."""

    accuracy: float = inf
    simulated_s: float = inf
    bytes: float = inf
    energy_j: float = inf

    def are_met(self, totals: Totals) -> bool:
        """Whether a run that has spent and reached this much ends."""
        return (
            (totals.accuracy is not None and totals.accuracy >= self.accuracy)
            or totals.simulated_s >= self.simulated_s
            or totals.down_bytes + totals.up_bytes >= self.bytes
            or totals.energy_j >= self.energy_j
        )


@dataclass(frozen=True, eq=False)
class Scenario:
    """Everything a run needs besides its state and an executor.

    Attributes:
        workload: What the clients need.
        method: The pruning method with its options.
        server: How the server steps.
        costs: What submodels cost.
        cohort_size: Clients per round.
        rounds: Number of rounds.
        score_every: Rounds between two scorings of the global model.
        test_rows: Test rows it is scored on.
        statistics_rows: Training rows its running statistics are re-estimated on, where the method asks.
        scored_share: Share of a cohort whose submodels are scored.
        diagnose_every: Rounds between two diagnoses of the method, 0 = never.
        clock: When a round ends, and whose work counts.
        stop: What ends the run before its last round.
        targets: Accuracies of which is told when they were first reached.
        budget: Solves budgets; none = devices tell theirs.
        selection: Who is asked to take part.
        pack_size: Clients that are trained together at most, where they can be.
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

    def is_over(self, state: ServerState) -> bool:
        """Whether the run ends with this state."""
        return state.round >= self.rounds or (state.round > 0 and self.stop.are_met(state.totals))

    @cached_property
    def num_examples(self) -> int:
        """Training rows of all clients."""
        return int(self.workload.population.train.counts.sum())

    @cached_property
    def buffers(self) -> frozenset[str]:
        """Keys of the model's buffers."""
        return frozenset(key for key, _ in self.workload.model.named_buffers())


class Runner(Protocol):
    """Plays a scenario somewhere; a context that starts and stops what it needs."""

    def __enter__(self) -> "Runner": ...

    def __exit__(self, *_: object) -> None: ...

    def make_ready(self, scenario: Scenario) -> None:
        """Wait until the first round could start; raise SettingError where that cannot be."""
        ...

    def run(self, scenario: Scenario, storage: Storage, start: Start = FIRST) -> Iterator[RoundReport]:
        """Yield the report of each round that is left."""
        ...

    def stop(self) -> int:
        """Let the round in progress be the last, and return which one that is; called from another thread."""
        ...

    def final_state(self) -> FinalState:
        """Return what the run leaves after its last round."""
        ...
