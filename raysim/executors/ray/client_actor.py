"""An actor that plays clients."""

import ctypes
import os
from contextlib import suppress
from math import ceil
from typing import TypeAlias, TypeVar

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from raysim.client import evaluation
from raysim.client.assignments import Assignment, Assignments, Broadcast, LocalRules
from raysim.client.packing import packed
from raysim.client.trainer import ClientTrainer
from raysim.core.capture import captured
from raysim.core.log import LogLine
from raysim.core.tensors import as_arrays, as_tensors
from raysim.executors.ray.readiness import Presence, check_versions, presence
from raysim.pruning.masks import Mask
from raysim.server.updates import ClientUpdates
from raysim.simulation.scenario import Scenario

Arrays = dict[str, NDArray[np.generic]]
Value = TypeVar("Value")
Answer: TypeAlias = tuple[Value, tuple[LogLine, ...]]
"""What comes out of a call, and what was said meanwhile."""


class ClientActor:
    """Plays clients; fetches a scenario once, before its first round."""

    def __init__(self) -> None:
        keep_freed_memory()
        self._stage: ClientTrainer | None = None

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
        with captured() as remarks:
            self._stage = ClientTrainer(ray.get(scenario[0]).workload.at_hand())
        return None, remarks.pop()

    def gpu_share(self, scenario: "list[ray.ObjectRef[Scenario]]") -> Answer[float]:
        """Return the share of a GPU that training the largest client needs; this actor has one for itself."""
        _, prepared = self.prepare(scenario, presence())
        with captured() as remarks:
            share = measured(self._prepared, ray.get(scenario[0]).pack_size)
        return share, (*prepared, *remarks.pop())

    def train(
        self, tasks: Assignments, params: Arrays, extra: Arrays, round: int, rules: LocalRules
    ) -> Answer[ClientUpdates]:  # fmt: skip
        """Train a chunk of clients; extra is what the method sends beside the global parameters."""
        with captured() as remarks:
            value = self._prepared.train(tasks, Broadcast(round, as_tensors(params), rules, as_tensors(extra)))
        return value, remarks.pop()

    def score(self, rows: NDArray[np.int64], params: Arrays) -> Answer[tuple[int, float]]:
        """Return correct answers and summed loss of the global model on test rows."""
        with captured() as remarks:
            value = self._prepared.score(as_tensors(params), rows)
        return value, remarks.pop()

    def estimate_statistics(self, rows: NDArray[np.int64], params: Arrays) -> Answer[Arrays]:
        """Re-estimate the global model's running statistics on training rows."""
        with captured() as remarks:
            value = as_arrays(self._prepared.estimate_statistics(as_tensors(params), rows))
        return value, remarks.pop()

    @property
    def _prepared(self) -> ClientTrainer:
        if self._stage is None:
            raise RuntimeError("no scenario has been prepared")
        return self._stage


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # what <malloc.h> calls them, with M_ before
LARGEST_MMAP_THRESHOLD_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """Have the C library keep freed memory; one that has no such choice (not glibc) is left as it is.

    By default glibc hands large blocks back to the system and gets them again page by page: thousands of page faults
    for the gradients and activations of one client.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD_BYTES)
        library.mallopt(TRIM_THRESHOLD, -1)


MARGIN = 1.25
"""Memory that is reserved over memory that was measured: methods keep more than plain training does."""


def needed_share(used_bytes: int, total_bytes: int) -> float:
    """Return the share of a GPU that an actor takes, in hundredths, rounded up; at most all of it.

    >>> needed_share(1_000_000_000, 80_000_000_000), needed_share(70, 80)
    (0.02, 1.0)
    """
    return min(1.0, ceil(100 * MARGIN * used_bytes / total_bytes) / 100)


def measured(stage: ClientTrainer, pack_size: int) -> float:
    """Train those clients with the most rows on the full model, on a GPU of their own; return the share needed.

    What counts is all that is taken of the GPU afterwards: PyTorch keeps what it has had, and its context is part
    of it.
    """
    workload = stage.workload
    counts = workload.population.train.counts
    mask = Mask(np.ones(workload.plan.num_units, dtype=np.bool_))
    largest = np.argpartition(-counts, min(pack_size, len(counts)) - 1)[:pack_size]
    tasks = Assignments.of_rows(
        [Assignment(int(client), mask, 1.0, 1.0, 1, True, 1.0) for client in np.sort(largest)]
    )
    tasks = packed(tasks, counts[tasks.clients], workload.local.batch_size, pack_size)
    params = dict(workload.model.state_dict())
    stage.train(tasks, Broadcast(1, params, LocalRules()))
    stage.score(params, np.arange(min(evaluation.BATCH, len(workload.data.test_labels))))
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return needed_share(total_bytes - free_bytes, total_bytes)
