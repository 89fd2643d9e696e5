"""Score a model on rows with targets, and re-estimate its BatchNorm statistics."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from raysim.client.memory_format import computing_on, laid_out
from raysim.core.inputs import Inputs, predict, take
from raysim.core.tensors import Columns, Params
from raysim.task.task import ScoreSums, Task

Split = Literal["test", "validation"]
"""Rows on which the global model is scored: test rows, or training rows that no client owns."""
BATCH = 500
"""Rows per forward pass: fixed, since the last bits of a result depend on it."""


def score(
    task: Task,
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    with_further: bool = False,
    memory_format: str = "contiguous",
) -> ScoreSums:
    """Score a model in eval mode on rows, of which there is at least one; also by further metrics, if wanted."""
    model.eval()
    inputs = laid_out(inputs, memory_format)
    batches = [slice(start, start + BATCH) for start in range(0, len(targets), BATCH)]
    with torch.no_grad(), computing_on(memory_format):
        first, *others = (
            task.sums(predict(model, take(inputs, batch)), targets[batch], with_further) for batch in batches
        )
    return sum(others, first)


def columns_of(task: Task, scores: Sequence[ScoreSums | None]) -> Columns:
    """Return the scores of clients as columns, `(clients,)` each; NaN where a client is not scored (None)."""
    primary = task.primary.name
    names = (primary, "heldout_loss", *map(heldout, task.of_clients))
    columns = {name: np.full(len(scores), np.nan) for name in names}
    for index, sums in enumerate(scores):
        if sums is None:
            continue
        columns[primary][index], columns["heldout_loss"][index] = task.primary_of(sums), sums.mean_loss
        for name, value in task.further_of(sums).items() if task.of_clients else ():
            columns[heldout(name)][index] = value
    return columns


def heldout(metric: str) -> str:
    """Return the column of a further metric on the clients' held-out rows."""
    return f"heldout_{metric}"


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the model's BatchNorm layers that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [layer for layer in model.modules() if isinstance(layer, kind) and layer.track_running_stats]


def estimate_statistics(model: nn.Module, batches: Iterable[Inputs], memory_format: str = "contiguous") -> None:
    """Set the running statistics to their plain mean over batches (HeteroFL's static BatchNorm)."""
    layers = batch_norms(model)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    model.train()
    with torch.no_grad(), computing_on(memory_format):
        for batch in batches:
            predict(model, laid_out(batch, memory_format))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def statistics_of(model: nn.Module) -> Params:
    """Return the model's buffers by state-dict key."""
    return {key: buffer.clone() for key, buffer in model.named_buffers()}
