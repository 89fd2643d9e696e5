"""The actor that trains clients."""

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
from raysim.client.evaluation import Split
from raysim.client.packing import packed
from raysim.client.trainer import ClientTrainer
from raysim.core.capture import captured
from raysim.core.log import LogLine
from raysim.core.tensors import as_arrays, as_tensors
from raysim.executors.ray.readiness import ProcessInfo, check_versions, process_info
from raysim.pruning.masks import Mask
from raysim.server.updates import ClientUpdates
from raysim.simulation.scenario import Scenario
from raysim.task.task import ScoreSums

Arrays = dict[str, NDArray[np.generic]]
Value = TypeVar("Value")
Answer: TypeAlias = tuple[Value, tuple[LogLine, ...]]
"""The result of a call, and the lines that were logged during it."""


class ClientActor:
    """Trains clients; fetches the scenario once, before its first round."""

    def __init__(self) -> None:
        keep_freed_memory()
        self._trainer: ClientTrainer | None = None

    def process_id(self) -> int:
        """Return the id of the process this actor runs in."""
        return os.getpid()

    def process_info(self) -> ProcessInfo:
        """Return which machine this actor runs on, and its versions."""
        return process_info()

    def prepare(
        self, scenario: "list[ray.ObjectRef[Scenario]]", started: ProcessInfo, device: str = "cpu"
    ) -> Answer[None]:
        """Fetch the scenario that all later calls belong to.

        Args:
            scenario: Its reference, in a list: Ray would wait for a bare one, and send it with every call.
            started: The process that started the run.
            device: PyTorch's name of the device that trains clients.

        Raises:
            SettingError: If this machine has other versions, or loads other data than the run's.
        """
        check_versions([process_info()], started)
        with captured() as remarks:
            self._trainer = ClientTrainer(ray.get(scenario[0]).workload.at_hand(), device)
        return None, remarks.pop()

    def gpu_share(self, scenario: "list[ray.ObjectRef[Scenario]]") -> Answer[float]:
        """Return the share of a GPU that the largest client's training needs, measured on the GPU of this actor."""
        _, prepared = self.prepare(scenario, process_info(), "cuda")
        with captured() as remarks:
            share = measured_share(self._prepared, ray.get(scenario[0]).pack_size)
        return share, (*prepared, *remarks.pop())

    def train(
        self, assignments: Assignments, params: Arrays, extra: Arrays, round: int, rules: LocalRules
    ) -> Answer[ClientUpdates]:
        """Train a chunk of clients; `extra` is what the method sends beside the global parameters."""
        with captured() as remarks:
            value = self._prepared.train(assignments, Broadcast(round, as_tensors(params), rules, as_tensors(extra)))
        return value, remarks.pop()

    def score(
        self, rows: NDArray[np.int64], params: Arrays, split: Split = "test", mask: Mask | None = None
    ) -> Answer[ScoreSums]:
        """Return the sums of the global model's scores on test or validation rows; with a mask, of its submodel's."""
        with captured() as remarks:
            value = self._prepared.score(as_tensors(params), rows, split, mask)
        return value, remarks.pop()

    def estimate_statistics(
        self, rows: NDArray[np.int64], params: Arrays, mask: Mask | None = None
    ) -> Answer[Arrays]:
        """Re-estimate the running statistics of the global model or its submodel on training rows."""
        with captured() as remarks:
            value = as_arrays(self._prepared.estimate_statistics(as_tensors(params), rows, mask))
        return value, remarks.pop()

    @property
    def _prepared(self) -> ClientTrainer:
        if self._trainer is None:
            raise RuntimeError("no scenario has been prepared")
        return self._trainer


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # what <malloc.h> calls them, with M_ before
LARGEST_MMAP_THRESHOLD_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """Have glibc keep freed memory; other C libraries stay as they are.

    By default glibc returns large blocks to the system and gets them back page by page, with thousands of page faults
    for the gradients and activations of one client. Without this a client takes 1.12 times the CPU seconds with
    ResNet-32 and 1.05 times with VGG16, on 64 images of 32 x 32 (`jobs/bench_freed_memory.py`).
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD_BYTES)
        library.mallopt(TRIM_THRESHOLD, -1)


MARGIN = 1.25
"""Memory to reserve over measured memory: methods keep more than plain training does."""


def needed_share(used_bytes: int, total_bytes: int) -> float:
    """Return the share of a GPU that an actor takes, rounded up to hundredths; at most 1.

    >>> needed_share(1_000_000_000, 80_000_000_000), needed_share(70, 80)
    (0.02, 1.0)
    """
    return min(1.0, ceil(100 * MARGIN * used_bytes / total_bytes) / 100)


def measured_share(trainer: ClientTrainer, pack_size: int) -> float:
    """Train the clients with the most rows on the full model and return the share of the GPU that this took.

    All memory in use afterwards counts: PyTorch keeps what it has freed, and its context takes some, too.
    """
    workload = trainer.workload
    counts = workload.population.train.counts
    mask = Mask.whole(workload.plan)
    largest = np.argpartition(-counts, min(pack_size, len(counts)) - 1)[:pack_size]
    assignments = Assignments.of_rows(
        [Assignment(int(client), mask, 1.0, 1.0, 1, True, 1.0) for client in np.sort(largest)]
    )
    assignments = packed(assignments, counts[assignments.clients], workload.local.batch_size, pack_size)
    params = dict(workload.model.state_dict())
    trainer.train(assignments, Broadcast(1, params, LocalRules()))
    trainer.score(params, np.arange(min(evaluation.BATCH, len(workload.data.test_targets))))
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return needed_share(total_bytes - free_bytes, total_bytes)
