"""Compute on images in `channels_last` memory: W1's clients train 1.15 times as fast.

Measured by `jobs/bench_training.py --compare channels-last`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from raysim.core.inputs import Inputs, each

CONVOLUTIONS = (functional.conv2d, functional.conv_transpose2d)
DROPOUTS = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
)


def laid_out(inputs: Inputs, memory_format: str) -> Inputs:
    """Return images `(rows, channels, height, width)` in a memory format; other inputs stay as they are."""
    return inputs if memory_format == "contiguous" else each(_channels_last, inputs)


def _channels_last(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def computing_on(memory_format: str) -> AbstractContextManager[object]:
    """Return a context in which layers compute on images in a memory format."""
    return nullcontext() if memory_format == "contiguous" else _ChannelsLast()


class _ChannelsLast(TorchFunctionMode):
    """Lays out images for convolutions, and makes them contiguous for dropout that does not work in place.

    PyTorch draws in the order of memory: on contiguous images dropout drops the same entries as without this mode.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Change the first argument of convolutions and dropout; pass on every other call."""
        kwargs = kwargs or {}
        if func in CONVOLUTIONS:
            args = (_channels_last(args[0]), *args[1:])
        elif func in DROPOUTS and not kwargs["inplace"]:
            args = (_contiguous(args[0]), *args[1:])
        return func(*args, **kwargs)


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
