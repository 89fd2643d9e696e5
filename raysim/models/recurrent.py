"""Recurrent networks for token ids or series."""

from typing import Literal

import torch
from torch import nn


class Recurrent(nn.Module):
    """An embedding or a linear layer, a recurrent network, and a linear layer on each position or on the last.

    Args:
        inputs: The first layer: maps token ids `(rows, time)` or series `(rows, channels, time)` to
            `(rows, time, width)`.
        network: LSTM or GRU with `batch_first`.
        num_outputs: Outputs of a row or position.
        each_position: Whether every position has outputs.
    """

    def __init__(self, inputs: nn.Module, network: nn.LSTM | nn.GRU, num_outputs: int, each_position: bool) -> None:
        super().__init__()
        self.inputs = inputs
        self.network = network
        self.outputs = nn.Linear(network.hidden_size, num_outputs)
        self._each_position = each_position

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs `(rows, time, outputs)`, or `(rows, outputs)` of the last position."""
        first = self.inputs(inputs.transpose(1, 2) if inputs.is_floating_point() else inputs)
        hidden, _ = self.network(first)
        outputs: torch.Tensor = self.outputs(hidden if self._each_position else hidden[:, -1])
        return outputs


def char_lstm(
    input_shape: tuple[int, ...],
    num_classes: int,
    vocabulary: int | None,
    task: str,
    embedding: int = 8,
    hidden: int = 256,
    layers: int = 2,
) -> nn.Module:
    """Return LEAF's network for Shakespeare: an embedding of 8, two LSTM layers of 256 units.

    With 80 characters it has 819,920 parameters. Source: Caldas et al., arXiv 1812.01097; McMahan et al.,
    arXiv 1602.05629, section 3.
    """
    return recurrent(input_shape, num_classes, vocabulary, task, "lstm", embedding, hidden, layers)


def gru(
    input_shape: tuple[int, ...],
    num_classes: int,
    vocabulary: int | None,
    task: str,
    embedding: int = 32,
    hidden: int = 128,
    layers: int = 1,
) -> nn.Module:
    """Return a network of GRU layers; of series, channels are first mapped to `embedding` values."""
    return recurrent(input_shape, num_classes, vocabulary, task, "gru", embedding, hidden, layers)


def recurrent(
    input_shape: tuple[int, ...],
    num_classes: int,
    vocabulary: int | None,
    task: str,
    kind: Literal["lstm", "gru"],
    embedding: int,
    hidden: int,
    layers: int,
) -> nn.Module:
    """Return a recurrent network with outputs at each position where the task has targets there."""
    first = nn.Linear(input_shape[0], embedding) if vocabulary is None else nn.Embedding(vocabulary, embedding)
    network = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](embedding, hidden, layers, batch_first=True)
    return Recurrent(first, network, num_classes, has_outputs_at_each_position(task))


def has_outputs_at_each_position(task: str) -> bool:
    """Whether a task compares the outputs of each position of a sequence with a target."""
    return task in ("next-token", "token-classification")
