"""The actor that runs the rounds and keeps the server state."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from raysim.core.log import caught
from raysim.core.signals import StopRequest
from raysim.core.tensors import as_arrays
from raysim.executors.ray.client_actor import Arrays, keep_freed_memory
from raysim.executors.ray.executor import RayExecutor
from raysim.executors.ray.pool import PoolConfig
from raysim.executors.ray.readiness import Presence, check_versions, presence
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

    def presence(self) -> Presence:
        """Return where this actor runs, and its versions."""
        return presence()

    def run(
        self,
        scenario: Scenario,
        reference: "list[ray.ObjectRef[Scenario]]",
        actors: Sequence[Any],
        rules: PoolConfig,
        storage: Storage,
        start: Start,
        started: Presence,
    ) -> Iterator[RoundReport]:
        """Yield the report of each round that is left, once it is on disk.

        Raises:
            SettingError: If this machine has other versions than those of `started`, where the run was started.
        """
        check_versions([presence()], started)
        with caught() as remarks:
            scenario = replace(scenario, workload=scenario.workload.at_hand())
            executor = RayExecutor(actors, rules, reference[0])
            self._scenario, self._state = scenario, first_state(scenario, storage, start)
            for state, report in run_rounds(scenario, self._state, executor, storage, start.wall_s, self._last):
                self._state = state
                yield replace(report, remarks=remarks.taken())

    def stop(self) -> int:
        """Let the round in progress be the last, and return which one that is."""
        return self._last.ask()

    def final_state(self) -> tuple[FinalState, Arrays, Arrays]:
        """Return what the run leaves, without its parameters; those as arrays, and the served ones that differ."""
        if self._scenario is None or self._state is None:
            raise RuntimeError("no round has been run")
        final = final_state(self._scenario, self._state)
        changed = {key: value for key, value in final.served_params.items() if value is not final.params[key]}
        return replace(final, params={}, served_params={}), as_arrays(final.params), as_arrays(changed)
