"""Step sizes of residual branches: `x + s F(x)` with a learned number s in place of `x + F(x)`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

STEP = "step"
"""Name of the parameter, `(1,)`, of the layer in which a branch ends."""


def add_steps(model: nn.Module, layers: Iterable[str]) -> nn.Module:
    """Scale the outputs of layers by a learned number each, 1 at first, in place; return the model.

    Source: NeFL, arXiv 2308.07761: the step sizes of a solver of ordinary differential equations.
    """
    for name in layers:
        layer = model.get_submodule(name)
        layer.register_parameter(STEP, nn.Parameter(torch.ones(1)))
        layer.register_forward_hook(_scaled)
    return model


def _scaled(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output * layer.get_parameter(STEP)
