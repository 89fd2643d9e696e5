"""The floor of the engine's benchmarks: as many plain PyTorch loops as cores, each in a process of its own."""

import multiprocessing
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.client.memory_format import laid_out
from raysim.core import seeding
from raysim.data.batches import batch_slices

Rows = Mapping[int, tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Inputs and labels of each client, normalised and in memory."""


@dataclass(frozen=True)
class FloorJob:
    """The work of all loops: train a model from its start weights by plain SGD for one epoch.

    `memory_format` is that of images and of convolutions' weights, `contiguous` or `channels_last`.
    """

    model: nn.Module
    learning_rate: float
    batch_size: int
    seed: int
    memory_format: str = "contiguous"


class PlainLoop:
    """Trains clients one after another in as little PyTorch as it takes."""

    def __init__(self, job: FloorJob, rows: Rows) -> None:
        self._job, self._model = job, job.model.train()
        if job.memory_format == "channels_last":
            self._model.to(memory_format=torch.channels_last)
        self._parameters = list(job.model.parameters())
        self._weights = [parameter.data for parameter in self._parameters]
        self._start = [weight.clone() for weight in self._weights]
        self._rows = {
            client: (
                cast("torch.Tensor", laid_out(torch.from_numpy(images), job.memory_format)),
                torch.from_numpy(own),
            )
            for client, (images, own) in rows.items()
        }

    def train(self, round: int, clients: Sequence[int]) -> None:
        """Train clients as a round of plain FedAvg would."""
        for client in clients:
            self._train_client(round, *self._rows[client], client)

    def summed(self, round: int, clients: Sequence[int]) -> list[NDArray[np.float64]]:
        """Return the sum of n_k times the update of client k, by parameter."""
        sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in self._weights]
        for client in clients:
            self._train_client(round, *self._rows[client], client)
            for total, after, before in zip(sums, self._weights, self._start, strict=True):
                total += len(self._rows[client][1]) * (after.double() - before.double())
        return [total.numpy() for total in sums]

    def _train_client(self, round: int, inputs: torch.Tensor, labels: torch.Tensor, client: int) -> None:
        job = self._job
        torch._foreach_copy_(self._weights, self._start)
        torch.default_generator.manual_seed(seeding.derive_seed(job.seed, "layers", round, client))
        order = seeding.generator(job.seed, "batches", round, client)
        shuffled = torch.from_numpy(order.permutation(len(labels)))
        for batch in batch_slices(len(labels), job.batch_size):
            rows = shuffled[batch]
            loss = nn.functional.cross_entropy(self._model(inputs[rows]), labels[rows])
            gradients = torch.autograd.grad(loss, self._parameters)
            torch._foreach_add_(self._weights, gradients, alpha=-job.learning_rate)


def _serve(connection: Connection, job: bytes, rows: Rows) -> None:
    torch.set_num_threads(1)
    loop = PlainLoop(pickle.loads(job), rows)
    connection.send("ready")
    while (request := connection.recv()) is not None:
        method, rounds = request
        connection.send([getattr(loop, method)(round, clients) for round, clients in rounds])


class Floor:
    """Plain loops in processes of their own; a context that ends them."""

    def __init__(self, job: FloorJob, rows: Rows, num_loops: int) -> None:
        context, copied = multiprocessing.get_context("spawn"), pickle.dumps(job)  # else loops would share weights
        self._loops: list[tuple[Any, Connection]] = []
        for _ in range(num_loops):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, copied, rows), daemon=True)
            process.start()
            self._loops.append((process, ours))

    def __enter__(self) -> "Floor":
        for _, connection in self._loops:
            connection.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, connection in self._loops:
            connection.send(None)
            process.join()

    def train(self, rounds: Mapping[int, NDArray[np.int64]], num_loops: int | None = None) -> None:
        """Train the clients of some rounds, divided equally among loops that run at once."""
        self._call("train", rounds, num_loops or len(self._loops))

    def summed(self, rounds: Mapping[int, NDArray[np.int64]]) -> list[NDArray[np.float64]]:
        """Return the sum of n_k times the update of client k over all rounds, by parameter."""
        found = [sums for answer in self._call("summed", rounds, len(self._loops)) for sums in answer]
        return [np.sum(parts, axis=0) for parts in zip(*found, strict=True)]

    def _call(self, method: str, rounds: Mapping[int, NDArray[np.int64]], num_loops: int) -> list[Any]:
        loops = self._loops[:num_loops]
        for index, (_, connection) in enumerate(loops):
            connection.send((method, [(round, ids[index::num_loops].tolist()) for round, ids in rounds.items()]))
        return [connection.recv() for _, connection in loops]
