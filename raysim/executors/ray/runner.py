"""Starts Ray and the actors, plays a scenario on them, and stops what it started."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.errors import RunFailedError, SettingError, reason_of
from raysim.core.log import Remarks, pass_on, warn
from raysim.core.storage.local import storage_path
from raysim.core.tensors import as_tensors
from raysim.executors.ray import pool
from raysim.executors.ray.cluster import RESTARTS, connect, let_modules_travel
from raysim.executors.ray.driver_actor import DriverActor
from raysim.executors.ray.executor import RayExecutor
from raysim.executors.ray.failures import failure_of, loss_of
from raysim.executors.ray.pool import PoolConfig
from raysim.executors.ray.readiness import presence, wait_for
from raysim.simulation import checkpoint
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import FIRST, FinalState, RoundReport, Start, Storage


class RayRunner:
    """Plays a scenario on Ray: on the cluster at an address, or on a local Ray of its own.

    Entering the context starts Ray and the actors, which import while the scenario is still being built;
    leaving it stops what was started. Both belong into one thread: Ray takes ten seconds to shut down after
    the thread that started it has ended.
    """

    def __init__(
        self, num_actors: int | Literal["clients"] | None, address: str | None, num_clients: int = 0,
        client_timeout_s: float | None = None, on_this_node: bool = True,
        dashboard_host: str | None = None, on_gpus: bool = False,
    ) -> None:  # fmt: skip
        """Take down what to start, and where.

        Args:
            num_actors: Client actors; none = one per CPU, `clients` = one per client.
            address: A cluster's; none = RAY_ADDRESS if set, else a local Ray.
            num_clients: Registered clients.
            client_timeout_s: Seconds after which a client's training is taken to hang; none = never.
            on_this_node: Whether the run's files are on this machine, so that they have to be written from here.
            dashboard_host: Where the dashboard of a local Ray listens; none = no dashboard.
            on_gpus: Whether client actors share GPUs; then they start once the scenario is known.
        """
        self._num_actors, self._num_clients, self._client_timeout_s = num_actors, num_clients, client_timeout_s
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._on_this_node = on_this_node
        self._dashboard_host = dashboard_host
        self._on_gpus = on_gpus
        self._owns_ray = False
        self._driver: Any = None
        self._actors: list[Any] = []
        self._rules = PoolConfig()
        self._reference: ray.ObjectRef[Scenario] | None = None
        self._are_up = False
        self._is_stopping = False

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
            num_cpus = self._num_actors if isinstance(self._num_actors, int) else None
            connect(num_cpus, self._address, self._dashboard_host)
        self._driver = self._new_driver()
        self._rules, count = pool.pool_config(self._num_actors, self._num_clients, self._client_timeout_s)
        if self._on_gpus:
            pool.check_gpus()
        else:
            pool.start_actors(self._rules, count, self._actors)

    def _new_driver(self) -> Any:
        remote: Any = ray.remote
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 2}  # it can be told to stop while it runs
        if self._on_this_node:
            here = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
        driver = remote(**options)(DriverActor).remote()
        if self._is_stopping:
            driver.stop.remote()
        return driver

    def make_ready(self, scenario: Scenario) -> None:
        """Wait until the actors are up and could start with the first round; `run` does so by itself.

        Raises:
            SettingError: If an actor cannot start, has other versions, or loads other data.
            RunFailedError: If the scenario does not fit into the object store.
        """
        let_modules_travel()
        data = scenario.workload.data
        travelling = replace(scenario, workload=replace(scenario.workload, data=data.without_rows()))
        try:
            self._reference = ray.put(travelling)
        except ray.exceptions.RayError as error:
            raise failure_of(error, 1) from None
        if self._on_gpus and not self._actors:
            wanted = self._num_actors if isinstance(self._num_actors, int) else None
            self._rules, count = pool.pool_config_on_gpus(self._rules, self._reference, wanted)
            pool.start_actors(self._rules, count, self._actors)
        if not self._are_up:  # what is lost later is the executor's to replace
            wait_for(self._actors, self._driver, self._rules.num_cpus, self._address)
            self._are_up = True
        if data.on_nodes is not None:
            _load_everywhere(self._actors, self._reference)

    def executor(self, scenario: Scenario, num_actors: int | None = None) -> RayExecutor:
        """Return what spreads work over the actors, or over some of them, for rounds that are run in this process."""
        self.make_ready(scenario)
        if self._reference is None:
            raise RuntimeError("the scenario has not been put")
        rules = self._rules if num_actors is None else replace(self._rules, num_actors=num_actors)
        return RayExecutor(self._actors[:num_actors], rules, self._reference)

    def run(self, scenario: Scenario, storage: Storage, start: Start = FIRST) -> Iterator[RoundReport]:
        """Yield the report of each round that is left; a driver actor that is lost is replaced a few times.

        The next one goes on from the newest checkpoint: rounds after it are reported again.
        """
        if self._reference is None:
            self.make_ready(scenario)
        reference, self._reference = self._reference, None
        for left in reversed(range(RESTARTS + 1)):
            try:
                stream = self._driver.run.options(num_returns="streaming")
                given = (reference, [reference], self._actors, self._rules, storage, start, presence())
                for report in stream.remote(*given):
                    yield ray.get(report)
                return
            except ray.exceptions.RayTaskError as error:
                raise failure_of(error, 0) from None
            except ray.exceptions.RayError as error:
                start = self._after_loss(scenario, storage, start, error, left)

    def stop(self) -> int:
        """Let the round in progress be the last, and return which one that is."""
        self._is_stopping = True
        return int(ray.get(self._driver.stop.remote()))

    def _after_loss(
        self, scenario: Scenario, storage: Storage, start: Start, error: ray.exceptions.RayError, left: int
    ) -> Start:  # fmt: skip
        """Start another driver actor, and return where it goes on."""
        ray.kill(self._driver)  # it may live on where the network alone was lost, and would write the same files
        reason = loss_of(error)
        try:
            newest = checkpoint.resume_point(storage_path(storage.folder))
        except OSError as unread:
            cause = f"the driver actor was lost ({reason}), and where to go on cannot be read: {reason_of(unread)}"
            raise RunFailedError(0, -1, cause) from unread
        if not left:
            raise RunFailedError(newest.round + 1, -1, f"the driver actor was lost {RESTARTS + 1} times: {reason}")
        warn(f"the driver actor was lost: going on after round {newest.round} of {scenario.rounds} ({reason})")
        self._driver = self._new_driver()
        return Start(newest.round, max(start.wall_s, newest.wall_s))

    @property
    def driver_actor(self) -> Any:
        """Handle of the driver actor."""
        return self._driver

    @property
    def client_actors(self) -> list[Any]:
        """Handles of the client actors as they were started."""
        return list(self._actors)

    def final_state(self) -> FinalState:
        """Return what the run leaves after its last round.

        Raises:
            RunFailedError: If the driver actor is lost.
        """
        final: FinalState
        try:
            final, arrays, changed = ray.get(self._driver.final_state.remote())
        except ray.exceptions.RayError as error:
            raise RunFailedError(0, -1, f"the driver actor was lost after the last round: {error}") from None
        params = as_tensors(arrays)
        return replace(final, params=params, served_params=params | as_tensors(changed))


def _load_everywhere(actors: Sequence[Any], reference: "ray.ObjectRef[Scenario]") -> None:
    try:
        answers = ray.get([actor.prepare.remote([reference], presence()) for actor in actors])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SettingError):
            raise SettingError(str(error.cause)) from None
        raise failure_of(error, 0) from None
    said = Remarks()
    for remark in (remark for _, remarks in answers for remark in remarks):
        said.add(remark)
    pass_on(said.taken())
