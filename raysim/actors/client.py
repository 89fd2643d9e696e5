"""An actor that plays clients."""

import os
from typing import TypeAlias, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from raysim import gpu_share
from raysim.actors import freed_memory
from raysim.actors.readiness import Presence, check_versions, presence
from raysim.arrays import as_arrays, as_tensors
from raysim.client_step import Stage
from raysim.contribution import Contribution
from raysim.messages import Remark, caught
from raysim.scenario import Scenario
from raysim.tasks import Tasks
from raysim.types import Broadcast, LocalRules

Arrays = dict[str, NDArray[np.generic]]
Value = TypeVar("Value")
Answer: TypeAlias = tuple[Value, tuple[Remark, ...]]
"""What comes out of a call, and what was said meanwhile."""


class ClientActor:
    """Plays clients; fetches a scenario once, before its first round."""

    def __init__(self) -> None:
        freed_memory.keep()
        self._stage: Stage | None = None

    def process_id(self) -> int:
        """Return the id of the process this actor runs in."""
        return os.getpid()

    def presence(self) -> Presence:
        """Return where this actor runs, and its versions."""
        return presence()

    def prepare(self, scenario: "list[ray.ObjectRef[Scenario]]", started: Presence) -> Answer[None]:
        """Have the scenario at hand that all later calls belong to.

        Args:
            scenario: In a list, since Ray would wait for a bare reference, and send it with every call.
            started: Where the run was started, and its versions there.

        Raises:
            SettingError: If this machine has other versions, or its data is loaded here, and is not that of the run.
        """
        check_versions([presence()], started)
        with caught() as remarks:
            self._stage = Stage(ray.get(scenario[0]).workload.at_hand())
        return None, remarks.taken()

    def gpu_share(self, scenario: "list[ray.ObjectRef[Scenario]]") -> Answer[float]:
        """Return the share of a GPU that training the largest client needs; this actor has one for itself."""
        _, prepared = self.prepare(scenario, presence())
        with caught() as remarks:
            share = gpu_share.measured(self._prepared, ray.get(scenario[0]).pack_size)
        return share, (*prepared, *remarks.taken())

    def train(
        self, tasks: Tasks, params: Arrays, extra: Arrays, round: int, rules: LocalRules
    ) -> Answer[Contribution]:  # fmt: skip
        """Train a chunk of clients; extra is what the method sends beside the global parameters."""
        with caught() as remarks:
            value = self._prepared.train(tasks, Broadcast(round, as_tensors(params), rules, as_tensors(extra)))
        return value, remarks.taken()

    def score(self, rows: NDArray[np.int64], params: Arrays) -> Answer[tuple[int, float]]:
        """Return correct answers and summed loss of the global model on test rows."""
        with caught() as remarks:
            value = self._prepared.score(as_tensors(params), rows)
        return value, remarks.taken()

    def estimate_statistics(self, rows: NDArray[np.int64], params: Arrays) -> Answer[Arrays]:
        """Re-estimate the global model's running statistics on training rows."""
        with caught() as remarks:
            value = as_arrays(self._prepared.estimate_statistics(as_tensors(params), rows))
        return value, remarks.taken()

    @property
    def _prepared(self) -> Stage:
        if self._stage is None:
            raise RuntimeError("no scenario has been prepared")
        return self._stage
