"""Spread a round's work over client actors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from raysim.client.assignments import Assignments, Broadcast
from raysim.client.evaluation import Split
from raysim.core.errors import RunFailedError
from raysim.core.tensors import Params, as_arrays, as_tensors
from raysim.executors.in_process import pieces, total_score
from raysim.executors.ray.calls import Call
from raysim.executors.ray.client_actor import Arrays
from raysim.executors.ray.dispatch import Dispatch
from raysim.executors.ray.failure_policy import Activity
from raysim.executors.ray.failures import run_error_of
from raysim.executors.ray.pool import ActorPool
from raysim.executors.ray.pool_config import PoolConfig
from raysim.pruning.masks import Mask
from raysim.server.updates import Accumulator, ClientUpdates
from raysim.simulation.scenario import Scenario
from raysim.task.task import ScoreSums

SHARES = (0.6, 0.2, 0.2)
"""Shares of an actor's part of a round: its first chunk, and the two that even out differences between actors."""

SMALL_BYTES = 32 * 1024
"""Arrays up to this size are sent inside each call: putting them into the object store takes longer."""


class RayExecutor:
    """Spreads a round's work over client actors; results do not depend on which actor did what."""

    def __init__(self, actors: Sequence[Any], config: PoolConfig, scenario: "ray.ObjectRef[Scenario]") -> None:
        """Prepare actors for a scenario.

        Args:
            actors: Handles of the client actors that have been started.
            config: How others are started, where some are lost or machines join.
            scenario: Reference to the scenario; each actor fetches it once.
        """
        self._pool = ActorPool(config, actors, scenario)
        self._round = 0
        self._incidents: list[str] = []
        self._last: tuple[Params, Any] = ({}, {})

    def train(self, assignments: Assignments, broadcast: Broadcast) -> ClientUpdates:
        """Train some clients that start from one version of the model, costly chunks first."""
        return self.train_versions([(assignments, broadcast)])[0]

    def train_versions(self, groups: Sequence[tuple[Assignments, Broadcast]]) -> list[ClientUpdates]:
        """Train groups of clients, each from a version of its own, all at once."""
        self._pool.resize()
        calls: list[Call] = []
        for index, (assignments, broadcast) in enumerate(groups):
            self._round = broadcast.round
            sent = self._shared(broadcast.params), _sendable(as_arrays(broadcast.extra), self._round)
            others = (*sent, broadcast.round, broadcast.rules)
            calls += [Call(index, Activity.TRAIN, chunk, others) for chunk in self._chunks(assignments)]
        calls.sort(key=lambda call: -call.cost)
        sums = [Accumulator() for _ in groups]
        for index, updates in self._results(calls):
            sums[index].add(updates)
        return [each.total() for each in sums]

    def score(
        self, params: Params, rows: NDArray[np.int64], split: Split = "test", mask: Mask | None = None
    ) -> ScoreSums:
        """Return the sums of the global model's scores on test or validation rows; with a mask, of its submodel's."""
        others = (self._shared(params), split, mask)
        calls = [Call(index, Activity.SCORE, piece, others) for index, piece in enumerate(pieces(rows))]
        counts = dict(self._results(calls))
        return total_score([counts[index] for index in range(len(calls))])

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64], mask: Mask | None = None) -> Params:
        """Re-estimate the running statistics of the global model or its submodel on training rows, in one actor."""
        call = Call(0, Activity.ESTIMATE, rows, (self._shared(params), mask))
        buffers: Arrays = dict(self._results([call]))[0]
        return {key: buffer.clone() for key, buffer in as_tensors(buffers).items()}

    def incidents(self) -> tuple[str, ...]:
        """Return the failures that were made good since the last call of this method, a sentence each."""
        incidents, self._incidents = tuple(self._incidents), []
        return incidents

    def _results(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        dispatch = Dispatch(self._pool, calls, self._round)
        try:
            yield from dispatch
        except RunFailedError as error:
            before = "".join(f"{incident}\n" for incident in (*self._incidents, *dispatch.incidents))
            raise RunFailedError(error.round, error.client, error.cause, f"{before}{error.details}") from None
        self._incidents += dispatch.incidents

    def _chunks(self, assignments: Assignments) -> list[Assignments]:
        if self._pool.config.own_clients:
            return assignments.apart()
        return assignments.chunks(chunk_shares(len(self._pool.actors)))

    def _shared(self, params: Params) -> Any:
        """Return the global parameters as an argument of calls; put once while they stay the same tensors."""
        known, argument = self._last
        if known.keys() != params.keys() or any(known[key] is not tensor for key, tensor in params.items()):
            argument = _sendable(as_arrays(params), self._round)
            self._last = params, argument
        return argument


def chunk_shares(num_actors: int) -> list[float]:
    """Return the shares of a round's predicted cost that its chunks have, so that actors end together.

    The first chunks are large, since the result of a chunk is sums of the whole model's size; the last are small.
    """
    return [share / num_actors for share in SHARES for _ in range(num_actors)]


def _sendable(arrays: Mapping[str, NDArray[np.generic]], round: int) -> Any:
    """Return arrays as they are, or a reference to them where they are large."""
    if sum(array.nbytes for array in arrays.values()) <= SMALL_BYTES:
        return arrays
    try:
        return ray.put(arrays)
    except ray.exceptions.RayError as error:
        raise run_error_of(error, round) from None
