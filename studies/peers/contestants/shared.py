"""What contestants share: the workload as a file, training as a user would write it, and the file of results."""

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

torch.set_num_threads(1)


class Workload:
    """The work of all contestants.

    Attributes:
        model: The network; its values are those before round 1.
        rows: Inputs and labels of each client.
        cohorts: Ids of the clients of each round.
        learning_rate: Step size of plain SGD.
        batch_size: Rows of a batch; a client trains one epoch.
    """

    def __init__(self, path: Path) -> None:
        content = torch.load(path, weights_only=False)
        self.model: nn.Module = content["model"].to(memory_format=torch.channels_last).train()
        self.rows: Mapping[int, tuple[torch.Tensor, torch.Tensor]] = {
            client: (laid_out(inputs), labels) for client, (inputs, labels) in content["rows"].items()
        }
        self.cohorts: list[list[int]] = content["cohorts"]
        self.learning_rate: float = content["learning_rate"]
        self.batch_size: int = content["batch_size"]


@cache
def loaded(path: str) -> Workload:
    """Return a workload, which every process reads once."""
    return Workload(Path(path))


def laid_out(inputs: torch.Tensor) -> torch.Tensor:
    """Return images in the memory format that computes fastest; other rows stay as they are."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def train(workload: Workload, model: nn.Module, client: int) -> float:
    """Train a client for one epoch as PyTorch's tutorials do; return its mean loss."""
    inputs, labels = workload.rows[client]
    optimizer = torch.optim.SGD(model.parameters(), workload.learning_rate)
    total = 0.0
    for batch in torch.randperm(len(labels)).split(workload.batch_size):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(labels)


class Stopwatch:
    """Seconds between the ends of rounds."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: list[float] = []

    def lap(self) -> None:
        """Note that a round has ended."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def write(path: Path, seconds: list[float], params: Mapping[str, Any]) -> None:
    """Write the seconds of every round, and the model after the last one."""
    torch.save({"seconds": seconds, "params": {key: torch.as_tensor(value) for key, value in params.items()}}, path)
