"""Ray: client actors that play clients, a driver actor that runs the rounds, and how they are started."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util import ActorPool
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.arrays import as_arrays, as_tensors
from raysim.client_step import Stage
from raysim.contribution import Contribution, merge
from raysim.errors import RunFailedError
from raysim.executors import pieces, total_score
from raysim.ray_tasks import RESTARTS, connect, let_modules_travel, num_workers
from raysim.rounds import initial_state
from raysim.scenario import Scenario
from raysim.simulation import play
from raysim.types import Broadcast, ClientTask, LocalRules, Params, RoundReport, Score, ServerState, Storage

CHUNKS_PER_ACTOR = 2
Arrays = dict[str, NDArray[np.generic]]


class ClientActor:
    """Plays clients; fetches a scenario once and keeps it for all its rounds."""

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._played: ray.ObjectRef[Scenario] | None = None

    def process_id(self) -> int:
        """Return the id of the process this actor runs in."""
        return os.getpid()

    def train(
        self,
        tasks: Sequence[ClientTask],
        shared: tuple[Arrays, Arrays],
        scenario: "list[ray.ObjectRef[Scenario]]",
        round: int,
        rules: LocalRules,
    ) -> Contribution:
        """Train a chunk of clients; shared are the parameters, and what the method sends beside them."""
        params, extra = shared
        return self._stage_of(scenario).train(tasks, Broadcast(round, as_tensors(params), rules, as_tensors(extra)))

    def score(
        self, rows: NDArray[np.int64], params: Arrays, scenario: "list[ray.ObjectRef[Scenario]]"
    ) -> tuple[int, float]:
        """Return correct answers and summed loss of the global model on test rows."""
        return self._stage_of(scenario).score(as_tensors(params), rows)

    def estimate_statistics(
        self, rows: NDArray[np.int64], params: Arrays, scenario: "list[ray.ObjectRef[Scenario]]"
    ) -> Arrays:
        """Re-estimate the global model's running statistics on training rows."""
        return as_arrays(self._stage_of(scenario).estimate_statistics(as_tensors(params), rows))

    def _stage_of(self, scenario: "list[ray.ObjectRef[Scenario]]") -> Stage:
        if self._stage is None or self._played != scenario[0]:
            self._stage, self._played = Stage(ray.get(scenario[0]).workload), scenario[0]
        return self._stage


class RayExecutor:
    """Spreads a round's work over client actors; results do not depend on who did what."""

    def __init__(self, actors: Sequence[Any], scenario: "ray.ObjectRef[Scenario]") -> None:
        self._actors = list(actors)
        self._scenario = [scenario]
        self._round = 0

    def train(self, tasks: Sequence[ClientTask], broadcast: Broadcast) -> Contribution:
        """Train some clients that start from one version of the model, costly chunks first."""
        return self.train_versions([(tasks, broadcast)])[0]

    def train_versions(self, groups: Sequence[tuple[Sequence[ClientTask], Broadcast]]) -> list[Contribution]:
        """Train groups of clients, each from a version of its own, all at once."""
        chunks: list[tuple[int, list[ClientTask], Broadcast, Any]] = []
        for group, (tasks, broadcast) in enumerate(groups):
            self._round = broadcast.round
            shared = ray.put((as_arrays(broadcast.params), as_arrays(broadcast.extra)))
            for chunk in chunk_by_cost(tasks, CHUNKS_PER_ACTOR * len(self._actors)):
                chunks.append((group, chunk, broadcast, shared))
        chunks.sort(key=lambda chunk: -sum(task.cost for task in chunk[1]))

        def submit(actor: Any, chunk: tuple[int, list[ClientTask], Broadcast, Any]) -> Any:
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


def chunk_by_cost(tasks: Sequence[ClientTask], num_chunks: int) -> list[list[ClientTask]]:
    """Deal tasks to chunks of about equal predicted cost, costliest chunk first."""
    chunks: list[list[ClientTask]] = [[] for _ in range(min(num_chunks, len(tasks)))]
    costs = np.zeros(len(chunks))
    for task in sorted(tasks, key=lambda task: (-task.cost, task.client)):
        cheapest = int(np.argmin(costs))
        chunks[cheapest].append(task)
        costs[cheapest] += task.cost
    return [chunks[place] for place in np.argsort(-costs, kind="stable") if chunks[place]]


def cause_of(error: ray.exceptions.RayTaskError, round: int) -> RunFailedError:
    """Return what failed in an actor as the error it was raised as there."""
    cause = error.cause
    if isinstance(cause, RunFailedError):
        return RunFailedError(*cause.args)
    return RunFailedError(round, -1, f"{type(cause).__name__}: {cause}", str(error))


class DriverActor:
    """Runs the rounds and the reconstruction; keeps the server state."""

    def __init__(self) -> None:
        self._state: ServerState | None = None

    def run(
        self,
        scenario: Scenario,
        reference: "list[ray.ObjectRef[Scenario]]",
        actors: Sequence[Any],
        storage: Storage,
    ) -> Iterator[RoundReport]:
        """Yield the report of each round once it is on disk."""
        executor = RayExecutor(actors, reference[0])
        for state, report in play(scenario, initial_state(scenario), executor, storage):
            self._state = state
            yield report

    def final_state(self) -> tuple[ServerState, Arrays]:
        """Return the last state, its parameters as arrays."""
        if self._state is None:
            raise RuntimeError("no round has been played")
        state = self._state
        served = {key: value for key, value in state.memory.items() if key == "trained"}
        return ServerState(state.round, {}, served, state.totals), as_arrays(state.params)


class RayRunner:
    """Plays a scenario on Ray: on the cluster at an address, or on a local Ray of its own.

    Entering the context starts Ray and the actors, which import while the scenario is still being built;
    leaving it stops what was started. Both belong into one thread: Ray takes ten seconds to shut down after
    the thread that started it has ended.
    """

    def __init__(self, num_actors: int | None, address: str | None) -> None:
        self._num_actors = num_actors
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._owns_ray = False
        self._driver: Any = None
        self._actors: list[Any] = []

    def __enter__(self) -> "RayRunner":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._owns_ray:
            ray.shutdown()  # ends the actors, too; killing them first makes Ray announce retries on standard output
            return
        for actor in [self._driver, *self._actors]:
            if actor is not None:
                ray.kill(actor)

    def _start(self) -> None:
        if not ray.is_initialized():
            self._owns_ray = True
            connect(self._num_actors, self._address)
        count = num_workers(self._num_actors)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote
        driver = remote(num_cpus=0, scheduling_strategy=here)(DriverActor)
        client = remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(ClientActor)
        self._driver = driver.remote()
        self._actors = [client.remote() for _ in range(count)]

    def run(self, scenario: Scenario, storage: Storage) -> Iterator[RoundReport]:
        """Yield the report of each round."""
        let_modules_travel()
        reference = ray.put(scenario)
        start = self._driver.run.options(num_returns="streaming")
        try:
            for report in start.remote(reference, [reference], self._actors, storage):
                yield ray.get(report)
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error, 0) from None
        except ray.exceptions.RayError as error:
            raise RunFailedError(0, -1, f"the driver actor was lost: {error}") from None

    @property
    def client_actors(self) -> list[Any]:
        """Handles of the client actors."""
        return list(self._actors)

    def final_state(self) -> ServerState:
        """Return the state after the last round."""
        state, params = ray.get(self._driver.final_state.remote())
        return ServerState(state.round, as_tensors(params), {}, state.totals)
