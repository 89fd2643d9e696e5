"""Score a model on rows with targets, and re-estimate its BatchNorm statistics."""

from collections.abc import Iterable

import torch
from torch import nn

from raysim.core.tensors import Params
from raysim.task.task import ScoreSums, Task

BATCH = 500
"""Rows per forward pass: fixed, since the last bits of a result depend on it."""


def score(task: Task, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> ScoreSums:
    """Score a model in eval mode on rows, of which there is at least one."""
    model.eval()
    batches = [slice(start, start + BATCH) for start in range(0, len(targets), BATCH)]
    with torch.no_grad():
        first, *others = (task.sums(model(inputs[batch]), targets[batch]) for batch in batches)
    return sum(others, first)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the model's BatchNorm layers that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [layer for layer in model.modules() if isinstance(layer, kind) and layer.track_running_stats]


def estimate_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set the running statistics to their plain mean over batches (HeteroFL's static BatchNorm)."""
    layers = batch_norms(model)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def statistics_of(model: nn.Module) -> Params:
    """Return the model's buffers by state-dict key."""
    return {key: buffer.clone() for key, buffer in model.named_buffers()}
