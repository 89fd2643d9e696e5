"""Starts Ray and the actors, and stops what it started."""

import logging
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.errors import RunFailedError, SettingError
from raysim.types import RoundReport, ServerState, Storage

if TYPE_CHECKING:
    from raysim.rounds import Scenario

RESTARTS = 3
"""How often a client actor that died is started again; its task is repeated, since tasks are pure."""


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
        for actor in [self._driver, *self._actors]:
            if actor is not None:
                ray.kill(actor)
        if self._owns_ray:
            ray.shutdown()

    def _start(self) -> None:
        if not ray.is_initialized():
            self._connect()
        cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
        count = self._num_actors or max(1, cpus)
        if count > cpus:
            raise SettingError(
                f"executor.num_actors={count} is more than the cluster's {cpus} CPUs; allowed: 1 to {cpus}"
            )
        from raysim.actors import ClientActor, DriverActor  # only now: Ray starts faster than PyTorch imports

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote
        driver = remote(num_cpus=0, scheduling_strategy=here)(DriverActor)
        client = remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(ClientActor)
        self._driver = driver.remote()
        self._actors = [client.remote() for _ in range(count)]

    def _connect(self) -> None:
        on_termination = signal.getsignal(signal.SIGTERM)
        self._initialise()
        signal.signal(signal.SIGTERM, on_termination)  # Ray installs one that aborts the process

    def _initialise(self) -> None:
        self._owns_ray = True
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address and self._address != "local":
            try:
                ray.init(address=self._address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise SettingError(f"executor.address={self._address!r} cannot be reached: {error}") from None
            return
        count = self._num_actors or len(os.sched_getaffinity(0))
        ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)

    def run(self, scenario: "Scenario", storage: Storage) -> Iterator[RoundReport]:
        """Yield the report of each round."""
        reference = ray.put(scenario)
        start = self._driver.run.options(num_returns="streaming")
        try:
            for report in start.remote(reference, [reference], self._actors, storage):
                yield ray.get(report)
        except ray.exceptions.RayTaskError as error:
            from raysim.actors import cause_of

            raise cause_of(error, 0) from None
        except ray.exceptions.RayError as error:
            raise RunFailedError(0, -1, f"the driver actor was lost: {error}") from None

    @property
    def client_actors(self) -> list[Any]:
        """Handles of the client actors."""
        return list(self._actors)

    def final_state(self) -> ServerState:
        """Return the state after the last round."""
        from raysim.arrays import as_tensors

        state, params = ray.get(self._driver.final_state.remote())
        return ServerState(state.round, as_tensors(params), {}, state.totals)
