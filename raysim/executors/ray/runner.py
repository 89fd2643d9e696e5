"""Start Ray and the actors, run a scenario on them, and stop what was started."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.capture import LineCollector
from raysim.core.errors import RunFailedError, SettingError, reason_of
from raysim.core.log import relay, warning
from raysim.core.storage.local import storage_path
from raysim.core.tensors import as_tensors
from raysim.executors.ray import pool_config
from raysim.executors.ray.cluster import connect, pickle_users_modules
from raysim.executors.ray.driver_actor import DriverActor
from raysim.executors.ray.executor import RayExecutor
from raysim.executors.ray.failure_policy import REASONS, Activity, Attempt, Failure, Raise, decide
from raysim.executors.ray.failures import failure_of, loss_of, run_error_of
from raysim.executors.ray.pool import start_actors
from raysim.executors.ray.pool_config import PoolConfig
from raysim.executors.ray.readiness import process_info, wait_for
from raysim.simulation import checkpoint
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import FinalState, RoundReport, Start, Storage


class RayRunner:
    """Runs a scenario on Ray: on the cluster at an address, or on a local Ray of its own.

    Entering the context starts Ray and the actors, which import while the scenario is still being built;
    leaving it stops what was started. Enter and leave it in the same thread: Ray takes ten seconds to shut down
    after the thread that started it has ended.
    """

    def __init__(
        self,
        num_actors: int | Literal["clients"] | None,
        address: str | None,
        num_clients: int = 0,
        client_timeout_s: float | None = None,
        on_this_machine: bool = True,
        dashboard_host: str | None = None,
        on_gpus: bool = False,
    ) -> None:
        """Set what to start, and where.

        Args:
            num_actors: Number of client actors; None: one per CPU, `clients`: one per client.
            address: Address of a cluster; None: RAY_ADDRESS if set, else a local Ray.
            num_clients: Number of registered clients.
            client_timeout_s: Seconds after which a client's training is considered hanging; None: never.
            on_this_machine: Whether the run's files are on this machine, so that the driver actor has to run on it.
            dashboard_host: Host name on which the dashboard of a local Ray listens; None: no dashboard.
            on_gpus: Whether client actors share GPUs; then they start once the scenario is known.
        """
        self._num_actors, self._num_clients, self._client_timeout_s = num_actors, num_clients, client_timeout_s
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._on_this_machine = on_this_machine
        self._dashboard_host = dashboard_host
        self._on_gpus = on_gpus
        self._owns_ray = False
        self._driver: Any = None
        self._actors: list[Any] = []
        self._config = PoolConfig()
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
        self._config, num_actors = pool_config.pool_config(
            self._num_actors, self._num_clients, self._client_timeout_s
        )
        if self._on_gpus:
            pool_config.check_gpus()
        else:
            start_actors(self._config, num_actors, self._actors)

    def _new_driver(self) -> Any:
        remote: Any = ray.remote
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 2}  # `stop` while `run` is running
        if self._on_this_machine:
            here = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
        driver = remote(**options)(DriverActor).remote()
        if self._is_stopping:
            driver.stop.remote()
        return driver

    def make_ready(self, scenario: Scenario) -> None:
        """Wait until the actors could begin with the first round; `run` does so by itself.

        Raises:
            SettingError: If an actor cannot start, has other versions, or loads other data.
            RunFailedError: If the scenario does not fit into the object store.
        """
        pickle_users_modules()
        data = scenario.workload.data
        sent = replace(scenario, workload=replace(scenario.workload, data=data.without_rows()))
        try:
            self._reference = ray.put(sent)
        except ray.exceptions.RayError as error:
            raise run_error_of(error, 1) from None
        if self._on_gpus and not self._actors:
            wanted = self._num_actors if isinstance(self._num_actors, int) else None
            self._config, num_actors = pool_config.pool_config_on_gpus(self._config, self._reference, wanted)
            start_actors(self._config, num_actors, self._actors)
        if not self._are_up:  # the executor replaces actors that are lost later
            wait_for(self._actors, self._driver, self._config.num_cpus, self._address)
            self._are_up = True
        if data.on_nodes is not None:
            _load_everywhere(self._actors, self._reference, self._config.device)

    def executor(self, scenario: Scenario, num_actors: int | None = None) -> RayExecutor:
        """Return an executor on all or some of the actors, for rounds that are run in this process."""
        self.make_ready(scenario)
        if self._reference is None:
            raise RuntimeError("the scenario has not been put")
        config = self._config if num_actors is None else replace(self._config, num_actors=num_actors)
        return RayExecutor(self._actors[:num_actors], config, self._reference)

    def run(self, scenario: Scenario, storage: Storage, start: Start = Start()) -> Iterator[RoundReport]:
        """Yield the report of each remaining round; a driver actor that is lost is replaced a few times.

        The next one resumes from the newest checkpoint: rounds after it are reported again.
        """
        if self._reference is None:
            self.make_ready(scenario)
        reference, self._reference = self._reference, None
        for losses in count():
            try:
                stream = self._driver.run.options(num_returns="streaming")
                arguments = (reference, [reference], self._actors, self._config, storage, start, process_info())
                for report in stream.remote(*arguments):
                    yield ray.get(report)
                return
            except ray.exceptions.RayTaskError as error:
                raise run_error_of(error, 0) from None
            except ray.exceptions.RayError as error:
                start = self._replace_driver(scenario, storage, start, failure_of(error, 0), losses)

    def stop(self) -> int:
        """Let the round in progress be the last, and return its number."""
        self._is_stopping = True
        return int(ray.get(self._driver.stop.remote()))

    def _replace_driver(
        self, scenario: Scenario, storage: Storage, start: Start, failure: Failure, earlier_losses: int
    ) -> Start:
        """Start another driver actor, unless the failure policy ends the run, and return where it resumes."""
        ray.kill(self._driver)  # it may live on where the network alone was lost, and would write the same files
        try:
            newest = checkpoint.resume_point(storage_path(storage.folder), storage.run)
        except OSError as unread:
            lost = f"the driver actor was lost ({REASONS.get(failure.kind, failure.cause)})"
            cause = f"{lost}, and the newest checkpoint cannot be read: {reason_of(unread)}"
            raise RunFailedError(0, -1, cause) from unread
        attempt = Attempt(Activity.ROUNDS, losses=earlier_losses, num_rounds=scenario.rounds)
        decision = decide(replace(failure, round=newest.round + 1), attempt)
        if isinstance(decision, Raise):
            raise decision.error
        warning(decision.incident)
        storage_path(storage.folder).remove_partials()  # it may have been lost while it wrote
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
        """Return the final state of the run.

        Raises:
            RunFailedError: If the driver actor is lost.
        """
        final: FinalState
        try:
            final, arrays, changed = ray.get(self._driver.final_state.remote())
        except ray.exceptions.RayTaskError as error:
            raise run_error_of(error, 0) from None
        except ray.exceptions.RayError as error:
            raise RunFailedError(0, -1, f"the driver actor was lost after the last round: {error}") from None
        params = as_tensors(arrays)
        return replace(final, params=params, served_params=params | as_tensors(changed))


def _load_everywhere(actors: Sequence[Any], reference: "ray.ObjectRef[Scenario]", device: str) -> None:
    try:
        answers = ray.get([actor.prepare.remote([reference], process_info(), device) for actor in actors])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SettingError):
            raise SettingError(str(error.cause)) from None
        raise run_error_of(error, 0) from None
    except ray.exceptions.RayError as error:
        cause = f"a client actor was lost while it loaded the data ({REASONS[loss_of(error)]})"
        raise RunFailedError(0, -1, cause) from None
    lines = LineCollector()
    for remark in (remark for _, remarks in answers for remark in remarks):
        lines.add(remark)
    relay(lines.pop())
