"""The actor that runs the rounds and keeps the server state."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from raysim.actors.client import Arrays
from raysim.actors.executor import RayExecutor
from raysim.arrays import as_arrays
from raysim.rounds import initial_state
from raysim.scenario import Scenario
from raysim.simulation import play
from raysim.types import RoundReport, ServerState, Storage


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
        data = scenario.workload.data.at_hand()
        scenario = replace(scenario, workload=replace(scenario.workload, data=data))
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
