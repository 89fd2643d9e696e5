"""How images lie in memory while they are trained on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd


def laid_out(inputs: torch.Tensor, memory_format: str) -> torch.Tensor:
    """Return images in a memory format; what is no image stays as it is."""
    if memory_format == "contiguous" or inputs.dim() != 4:
        return inputs
    return inputs.contiguous(memory_format=torch.channels_last)


@contextmanager
def computing_on(model: nn.Module, memory_format: str) -> Iterator[None]:
    """Let layers compute on images in a memory format, while the context lasts.

    PyTorch draws in the order in which entries lie in memory. So the layers of `torch.nn` that drop entries see
    contiguous ones and drop the same in every format; convolutions behind them find theirs laid out again.
    """
    if memory_format == "contiguous":
        yield
        return
    handles = []
    for module in model.modules():
        if isinstance(module, _ConvNd):
            handles.append(module.register_forward_pre_hook(lambda _, inputs: laid_out(inputs[0], memory_format)))
        elif isinstance(module, _DropoutNd):
            handles.append(module.register_forward_pre_hook(lambda _, inputs: _Contiguous.apply(inputs[0])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Contiguous(torch.autograd.Function):
    """Makes entries contiguous on the way forward, and gradients like the entries were on the way back."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        is_laid_out = inputs.dim() == 4 and not inputs.is_contiguous()
        ctx.format = torch.channels_last if is_laid_out else torch.preserve_format
        return inputs.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gradient,) = gradients
        return gradient.contiguous(memory_format=ctx.format)
