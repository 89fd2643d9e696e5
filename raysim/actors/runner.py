"""Starts Ray and the actors, plays a scenario on them, and stops what it started."""

import os
from collections.abc import Iterator
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.actors import casting
from raysim.actors.cast import CastRules
from raysim.actors.connection import connect, let_modules_travel
from raysim.actors.driver import DriverActor
from raysim.actors.faults import failure_of
from raysim.arrays import as_tensors
from raysim.errors import RunFailedError
from raysim.scenario import Scenario
from raysim.types import RoundReport, ServerState, Storage


class RayRunner:
    """Plays a scenario on Ray: on the cluster at an address, or on a local Ray of its own.

    Entering the context starts Ray and the actors, which import while the scenario is still being built;
    leaving it stops what was started. Both belong into one thread: Ray takes ten seconds to shut down after
    the thread that started it has ended.
    """

    def __init__(
        self, num_actors: int | Literal["clients"] | None, address: str | None, num_clients: int = 0,
        client_timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        """Take down what to start.

        Args:
            num_actors: Client actors; none = one per CPU, `clients` = one per client.
            address: Ray cluster; none = RAY_ADDRESS if set, else a local Ray of our own.
            num_clients: Registered clients.
            client_timeout_s: Seconds after which a client's training is taken to hang; none = never.
        """
        self._num_actors, self._num_clients, self._client_timeout_s = num_actors, num_clients, client_timeout_s
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._owns_ray = False
        self._driver: Any = None
        self._actors: list[Any] = []
        self._rules = CastRules()

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
            connect(self._num_actors if isinstance(self._num_actors, int) else None, self._address)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote
        driver = remote(num_cpus=0, scheduling_strategy=here)(DriverActor)
        self._driver = driver.remote()
        self._rules, count = casting.rules(self._num_actors, self._num_clients, self._client_timeout_s)
        casting.start(self._rules, count, self._actors)

    def run(self, scenario: Scenario, storage: Storage) -> Iterator[RoundReport]:
        """Yield the report of each round."""
        let_modules_travel()
        reference = ray.put(scenario)
        start = self._driver.run.options(num_returns="streaming")
        try:
            for report in start.remote(reference, [reference], self._actors, self._rules, storage):
                yield ray.get(report)
        except ray.exceptions.RayTaskError as error:
            raise failure_of(error, 0) from None
        except ray.exceptions.RayError as error:
            raise RunFailedError(0, -1, f"the driver actor was lost: {error}") from None

    @property
    def client_actors(self) -> list[Any]:
        """Handles of the client actors as they were started."""
        return list(self._actors)

    def final_state(self) -> ServerState:
        """Return the state after the last round."""
        state, params = ray.get(self._driver.final_state.remote())
        return ServerState(state.round, as_tensors(params), {}, state.totals)
