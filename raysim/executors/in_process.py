"""Train clients and run whole scenarios in this process."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from raysim.client.assignments import Assignments, Broadcast
from raysim.client.evaluation import Split
from raysim.client.trainer import ClientTrainer
from raysim.client.view import Workload
from raysim.core.signals import StopRequest
from raysim.core.tensors import Params
from raysim.pruning.masks import Mask
from raysim.server.updates import ClientUpdates, merge
from raysim.simulation.loop import final_state, first_state, run_rounds
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import FinalState, RoundReport, ServerState, Start, Storage
from raysim.task.task import ScoreSums

ROWS_PER_CALL = 2000
"""Number of rows that one call scores: fixed, since the grouping of a float sum decides its last bits."""


class InProcessExecutor:
    """Trains clients in this process, one after another."""

    def __init__(self, workload: Workload, device: str = "cpu") -> None:
        self._trainer = ClientTrainer(workload, device)

    def train(self, assignments: Assignments, broadcast: Broadcast) -> ClientUpdates:
        """Train some clients that start from one version of the model."""
        return merge([self._trainer.train(assignments, broadcast)])

    def train_versions(self, groups: Sequence[tuple[Assignments, Broadcast]]) -> list[ClientUpdates]:
        """Train groups of clients, each from its own version of the model."""
        return [self.train(assignments, broadcast) for assignments, broadcast in groups]

    def score(
        self, params: Params, rows: NDArray[np.int64], split: Split = "test", mask: Mask | None = None
    ) -> ScoreSums:
        """Return the sums of the global model's scores on test or validation rows; with a mask, of its submodel's."""
        return total_score([self._trainer.score(params, piece, split, mask) for piece in pieces(rows)])

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64], mask: Mask | None = None) -> Params:
        """Re-estimate the global model's running statistics on training rows; with a mask, those of its submodel."""
        return self._trainer.estimate_statistics(params, rows, mask)

    def incidents(self) -> tuple[str, ...]:
        """Return nothing: an error in this process ends the run."""
        return ()


def pieces(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut rows into pieces of a fixed length."""
    return [rows[start : start + ROWS_PER_CALL] for start in range(0, len(rows), ROWS_PER_CALL)]


def total_score(parts: Sequence[ScoreSums]) -> ScoreSums:
    """Add up the scores of pieces, in the order given."""
    first, *others = parts
    return sum(others, first)


class InProcessRunner:
    """Runs a scenario in this process."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._scenario: Scenario | None = None
        self._state: ServerState | None = None
        self._last = StopRequest()

    def __enter__(self) -> "InProcessRunner":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def make_ready(self, scenario: Scenario) -> None:
        """Do nothing: this process is ready."""

    def run(self, scenario: Scenario, storage: Storage, start: Start = Start()) -> Iterator[RoundReport]:
        """Yield the report of each remaining round."""
        executor = InProcessExecutor(scenario.workload, self._device)
        self._scenario, self._state = scenario, first_state(scenario, storage, start)
        for state, report in run_rounds(scenario, self._state, executor, storage, start.wall_s, self._last):
            self._state = state
            yield report

    def stop(self) -> int:
        """Stop after the round in progress, and return its number."""
        return self._last.request()

    def final_state(self) -> FinalState:
        """Return the final state of the run."""
        if self._scenario is None or self._state is None:
            raise RuntimeError("no round has been run")
        return final_state(self._scenario, self._state)
