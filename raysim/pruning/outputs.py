"""Find the rows of a model's classifier without a trace."""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from raysim.pruning import submodel
from raysim.pruning.groups import ChannelGroup, Slot
from raysim.pruning.proof import Forward, on_a_copy


def find(model: nn.Module, example: Any, forward: Forward | None = None) -> ChannelGroup | None:
    """Return the classifier's rows, one unit per class. None: no layer can be shown to be the classifier.

    It is the last linear layer or convolution of which every row changes exactly its own column of the output.

    Args:
        model: The model; it is left unchanged.
        example: A batch of inputs.
        forward: Applies the model to the example. None: `model(example)`.
    """
    twin = copy.deepcopy(model, submodel.without_graphs(model))
    twin.eval()
    forward = on_a_copy(forward)
    with torch.no_grad():
        normal = forward(twin, example)
        for name, layer in reversed(list(twin.named_modules())):
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not isinstance(normal, torch.Tensor):
                continue
            if normal.dim() == 2 and normal.shape[1] == len(layer.weight):
                rows = range(len(layer.weight))
                if all(_changed_columns(twin, forward, example, layer, row, normal) == [row] for row in rows):
                    return _rows_of(name, layer)
    return None


def _changed_columns(
    model: nn.Module, forward: Forward, example: Any, layer: nn.Linear | nn.Conv2d, row: int, normal: torch.Tensor
) -> list[int]:
    before = layer.weight[row].clone()
    layer.weight[row] = before * 2 + 1
    changed = (forward(model, example) != normal).any(dim=0)
    layer.weight[row] = before
    return [int(column) for column in changed.nonzero().ravel()]


def _rows_of(name: str, layer: nn.Linear | nn.Conv2d) -> ChannelGroup:
    rows = np.arange(len(layer.weight))[:, None]
    tensors = ["weight"] if layer.bias is None else ["weight", "bias"]
    keys = [f"{name}.{tensor}" if name else tensor for tensor in tensors]
    return ChannelGroup(name, len(rows), tuple(Slot(key, 0, rows, "weight") for key in keys))
