"""An actor that plays clients."""

import os
from dataclasses import replace

import numpy as np
import ray
from numpy.typing import NDArray

from raysim.actors.readiness import Presence, presence
from raysim.arrays import as_arrays, as_tensors
from raysim.client_step import Stage
from raysim.contribution import Contribution
from raysim.scenario import Scenario
from raysim.tasks import Tasks
from raysim.types import Broadcast, LocalRules

Arrays = dict[str, NDArray[np.generic]]


class ClientActor:
    """Plays clients; fetches a scenario once and keeps it for all its rounds."""

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._played: ray.ObjectRef[Scenario] | None = None

    def process_id(self) -> int:
        """Return the id of the process this actor runs in."""
        return os.getpid()

    def presence(self) -> Presence:
        """Return where this actor runs, and its versions."""
        return presence()

    def load(self, scenario: "list[ray.ObjectRef[Scenario]]") -> None:
        """Have the data set at hand before the first round.

        Raises:
            SettingError: If it is loaded on this machine, and differs from the one the run was started with.
        """
        self._stage_of(scenario)

    def train(
        self,
        tasks: Tasks,
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
            workload = ray.get(scenario[0]).workload
            self._stage = Stage(replace(workload, data=workload.data.at_hand()))
            self._played = scenario[0]
        return self._stage
