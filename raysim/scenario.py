"""What a run is: its workload, method and costs; and who runs the work of a round."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raysim.budget_solver import BudgetSolver
from raysim.client_view import Workload
from raysim.contribution import Contribution
from raysim.methods.method import Method
from raysim.pruning.costs import CostTable
from raysim.selection.table import SELECTIONS, SelectionRule
from raysim.server_optimizers import ServerOptimizer
from raysim.types import Broadcast, ClientTask, Params, Score


class Executor(Protocol):
    """Runs what a round asks for; what comes out does not depend on where."""

    def train(self, tasks: Sequence[ClientTask], broadcast: Broadcast) -> Contribution:
        """Train all clients of a cohort."""
        ...

    def score(self, params: Params, rows: NDArray[np.int64]) -> Score:
        """Score the global model on test rows."""
        ...

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64]) -> Params:
        """Re-estimate the global model's running statistics on training rows."""
        ...


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
        budget: Solves budgets; none = devices tell theirs.
        selection: Who is asked to take part.
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
    budget: BudgetSolver | None = None
    selection: SelectionRule = SELECTIONS["uniform"]

    @cached_property
    def buffers(self) -> frozenset[str]:
        """Keys of the model's buffers."""
        return frozenset(key for key, _ in self.workload.model.named_buffers())
