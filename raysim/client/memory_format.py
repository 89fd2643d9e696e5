"""How images lie in memory while they are trained on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

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

    PyTorch draws in the order in which entries lie in memory. So dropout layers of `torch.nn` see contiguous entries,
    unless they work in place, and drop the same in every format; convolutions behind them find theirs laid out again.
    """
    if memory_format == "contiguous":
        yield
        return
    lay_out, handles = partial(laid_out, memory_format=memory_format), []
    for module in model.modules():
        if isinstance(module, _ConvNd):
            handles.append(module.register_forward_pre_hook(_changing(lay_out)))
        elif isinstance(module, _DropoutNd) and not module.inplace:
            handles.append(module.register_forward_pre_hook(_changing(_contiguous)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changing(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    """Return a hook that changes the first positional argument; one given by name stays as it is."""
    return lambda _module, inputs: (change(inputs[0]), *inputs[1:]) if inputs else None


def _contiguous(inputs: torch.Tensor) -> torch.Tensor:
    is_laid_out = inputs.dim() == 4 and not inputs.is_contiguous()
    return cast("torch.Tensor", _Contiguous.apply(inputs)) if is_laid_out else inputs


class _Contiguous(torch.autograd.Function):
    """Makes images contiguous on the way forward, and gradients channels_last again on the way back."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gradient,) = gradients
        return gradient.contiguous(memory_format=torch.channels_last)
