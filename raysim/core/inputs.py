"""Inputs of a model: one tensor, or named tensors that its forward takes as keyword arguments."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call

from raysim.core.tensors import Params

Inputs = torch.Tensor | Mapping[str, torch.Tensor]
"""Inputs of some rows: one tensor `(rows, ...)`, or several by name."""


def each(function: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> Inputs:
    """Return inputs with a function applied to each tensor."""
    if isinstance(inputs, torch.Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}


def take(inputs: Inputs, rows: Any) -> Inputs:
    """Return the inputs of some rows: what indexing each tensor returns."""
    return inputs[rows] if isinstance(inputs, torch.Tensor) else {name: value[rows] for name, value in inputs.items()}


def predict(model: nn.Module, inputs: Inputs, weights: Params | None = None) -> torch.Tensor:
    """Return the outputs of a model, `(rows, ...)`; of several that it gives by name, its `logits`.

    Args:
        model: The model.
        inputs: Inputs of some rows.
        weights: Tensors to compute with instead of the model's own of the same name; None: its own.
    """
    args, named = ((inputs,), {}) if isinstance(inputs, torch.Tensor) else ((), dict(inputs))
    outputs = model(*args, **named) if weights is None else functional_call(model, weights, args, named)
    return outputs if isinstance(outputs, torch.Tensor) else cast("torch.Tensor", getattr(outputs, "logits", outputs))


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision; whole numbers, such as token ids, stay as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor
