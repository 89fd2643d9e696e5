"""Spreads a round's work over client actors."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util import ActorPool

from raysim.actors.client import Arrays
from raysim.arrays import as_arrays, as_tensors
from raysim.contribution import Contribution, merge
from raysim.errors import RunFailedError
from raysim.executors import pieces, total_score
from raysim.scenario import Scenario
from raysim.tasks import Tasks
from raysim.types import Broadcast, Params, Score

SHARES = (0.6, 0.3, 0.1)


class RayExecutor:
    """Spreads a round's work over client actors; results do not depend on who did what."""

    def __init__(self, actors: Sequence[Any], scenario: "ray.ObjectRef[Scenario]") -> None:
        self._actors = list(actors)
        self._scenario = [scenario]
        self._round = 0

    def train(self, tasks: Tasks, broadcast: Broadcast) -> Contribution:
        """Train some clients that start from one version of the model, costly chunks first."""
        return self.train_versions([(tasks, broadcast)])[0]

    def train_versions(self, groups: Sequence[tuple[Tasks, Broadcast]]) -> list[Contribution]:
        """Train groups of clients, each from a version of its own, all at once."""
        chunks: list[tuple[int, Tasks, Broadcast, Any]] = []
        for group, (tasks, broadcast) in enumerate(groups):
            self._round = broadcast.round
            shared = ray.put((as_arrays(broadcast.params), as_arrays(broadcast.extra)))
            for chunk in tasks.chunks(chunk_shares(len(self._actors))):
                chunks.append((group, chunk, broadcast, shared))
        chunks.sort(key=lambda chunk: -chunk[1].costs.sum())

        def submit(actor: Any, chunk: tuple[int, Tasks, Broadcast, Any]) -> Any:
            _, tasks, broadcast, shared = chunk
            return actor.train.remote(tasks, shared, self._scenario, broadcast.round, broadcast.rules)

        found = self._gather(submit, chunks, ordered=True)
        parts: list[list[Contribution]] = [[] for _ in groups]
        for (group, *_), contribution in zip(chunks, found, strict=True):
            parts[group].append(contribution)
        return [merge(part) for part in parts]

    def score(self, params: Params, rows: NDArray[np.int64]) -> Score:
        """Score the global model on test rows."""
        shared = ray.put(as_arrays(params))

        def submit(actor: Any, piece: NDArray[np.int64]) -> Any:
            return actor.score.remote(piece, shared, self._scenario)

        return total_score(self._gather(submit, pieces(rows), ordered=True), len(rows))

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64]) -> Params:
        """Re-estimate the global model's running statistics on training rows, in one actor."""
        shared = ray.put(as_arrays(params))

        def submit(actor: Any, rows: NDArray[np.int64]) -> Any:
            return actor.estimate_statistics.remote(rows, shared, self._scenario)

        buffers: Arrays = self._gather(submit, [rows], ordered=True)[0]
        return {key: buffer.clone() for key, buffer in as_tensors(buffers).items()}

    def _gather(self, submit: Callable[[Any, Any], Any], inputs: list[Any], ordered: bool) -> list[Any]:
        pool = ActorPool(self._actors)
        try:
            return list(pool.map(submit, inputs) if ordered else pool.map_unordered(submit, inputs))
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error, self._round) from None
        except ray.exceptions.RayError as error:
            cause = f"a client actor was lost and could not be replaced: {error}"
            raise RunFailedError(self._round, -1, cause) from None


def chunk_shares(num_actors: int) -> list[float]:
    """Return the shares of a round's predicted cost that its chunks have, so that actors end together.

    The first chunks are large, since each chunk sends back sums of the whole model's size; the last are small.
    """
    return [share / num_actors for share in SHARES for _ in range(num_actors)]


def cause_of(error: ray.exceptions.RayTaskError, round: int) -> RunFailedError:
    """Return what failed in an actor as the error it was raised as there."""
    cause = error.cause
    if isinstance(cause, RunFailedError):
        return RunFailedError(*cause.args)
    return RunFailedError(round, -1, f"{type(cause).__name__}: {cause}", str(error))
