"""The actor that runs the rounds and keeps the server state."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from raysim.core.capture import captured
from raysim.core.signals import StopRequest
from raysim.core.tensors import as_arrays
from raysim.executors.ray.client_actor import Arrays, keep_freed_memory
from raysim.executors.ray.executor import RayExecutor
from raysim.executors.ray.pool_config import PoolConfig
from raysim.executors.ray.readiness import ProcessInfo, check_versions, process_info
from raysim.simulation.loop import final_state, first_state, run_rounds
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import FinalState, RoundReport, ServerState, Start, Storage


class DriverActor:
    """Runs the rounds and the reconstruction; keeps the server state."""

    def __init__(self) -> None:
        keep_freed_memory()
        self._scenario: Scenario | None = None
        self._state: ServerState | None = None
        self._last = StopRequest()

    def process_id(self) -> int:
        """Return the id of the process this actor runs in."""
        return os.getpid()

    def process_info(self) -> ProcessInfo:
        """Return which machine this actor runs on, and its versions."""
        return process_info()

    def run(
        self,
        scenario: Scenario,
        reference: "list[ray.ObjectRef[Scenario]]",
        actors: Sequence[Any],
        config: PoolConfig,
        storage: Storage,
        start: Start,
        started: ProcessInfo,
    ) -> Iterator[RoundReport]:
        """Yield the report of each remaining round, once it is on disk.

        Args:
            scenario: The scenario.
            reference: Its reference for client actors, in a list, since Ray would resolve a bare one.
            actors: Handles of the client actors.
            config: How further client actors are started.
            storage: Where the run's files are written, and how often.
            start: Where to begin.
            started: The process that started the run.

        Raises:
            SettingError: If this machine has other versions than that process.
        """
        check_versions([process_info()], started)
        with captured() as remarks:
            scenario = replace(scenario, workload=scenario.workload.at_hand())
            executor = RayExecutor(actors, config, reference[0])
            self._scenario, self._state = scenario, first_state(scenario, storage, start)
            for state, report in run_rounds(scenario, self._state, executor, storage, start.wall_s, self._last):
                self._state = state
                yield replace(report, remarks=remarks.pop())

    def stop(self) -> int:
        """Let the round in progress be the last, and return its number."""
        return self._last.request()

    def final_state(self) -> tuple[FinalState, Arrays, Arrays]:
        """Return the final state of the run without parameters, its parameters, and the served ones that differ."""
        if self._scenario is None or self._state is None:
            raise RuntimeError("no round has been run")
        final = final_state(self._scenario, self._state)
        changed = {key: value for key, value in final.served_params.items() if value is not final.params[key]}
        return replace(final, params={}, served_params={}), as_arrays(final.params), as_arrays(changed)
