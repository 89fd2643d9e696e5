"""Hooks of a method into a client's training, and the reports that they make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.core.inputs import Inputs
from raysim.core.tensors import Params

BatchLoss = Callable[[nn.Module, Inputs, torch.Tensor], torch.Tensor]
"""Mean loss of a batch from model, inputs and targets."""

GradientObserver = Callable[[list[torch.Tensor]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Report of a hook at the end of a client's training.

    Attributes:
        sums: By name, values in the submodel's coordinates and a weight; they are added up exactly over the clients.
            Values under keys that are no parameters have the same shape for all clients.
        channel_sums: Numbers per channel, `(sums, num_units)`; they are not added up.
        memory: Tensors to be remembered of the client.
    """

    sums: Mapping[str, tuple[Params, float]] = field(default_factory=dict)
    channel_sums: NDArray[np.float64] | None = None
    memory: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LocalHooks:
    """Functions of a method that take part in a client's training.

    Attributes:
        loss: Mean loss of a batch, instead of the task's; only one hook may replace it.
        observe: Read the gradients of every step, unchanged.
        correct: Replace the gradients of every step, before they are clipped.
        rate: Returns the learning rate of a step, instead of the round's; only one hook may replace it.
        after_step: Run after every step.
        stop_after_epoch: Decides from an epoch's mean loss whether training stops early.
        finish: Report when training has ended.
        received: Report from the update as the server receives it, in the submodel's coordinates; the server could
            compute these reports by itself.
    """

    loss: BatchLoss | None = None
    observe: tuple[GradientObserver, ...] = ()
    correct: tuple[Callable[[list[torch.Tensor]], list[torch.Tensor]], ...] = ()
    rate: Callable[[], float] | None = None
    after_step: tuple[Callable[[], None], ...] = ()
    stop_after_epoch: Callable[[float], bool] | None = None
    finish: tuple[Callable[[], Report], ...] = ()
    received: tuple[Callable[[Params], Report], ...] = ()


def compose(several: Sequence[LocalHooks]) -> LocalHooks:
    """Combine several hooks into one, in their order.

    Raises:
        ValueError: If two of them replace the loss or the learning rate, or two may stop training early.
    """
    losses = [hooks.loss for hooks in several if hooks.loss is not None]
    rates = [hooks.rate for hooks in several if hooks.rate is not None]
    stops = [hooks.stop_after_epoch for hooks in several if hooks.stop_after_epoch is not None]
    if len(losses) > 1 or len(rates) > 1 or len(stops) > 1:
        raise ValueError("only one local rule can replace the loss, one the learning rate, and one can stop early")
    return LocalHooks(
        loss=losses[0] if losses else None,
        observe=sum((hooks.observe for hooks in several), ()),
        correct=sum((hooks.correct for hooks in several), ()),
        rate=rates[0] if rates else None,
        after_step=sum((hooks.after_step for hooks in several), ()),
        stop_after_epoch=stops[0] if stops else None,
        finish=sum((hooks.finish for hooks in several), ()),
        received=sum((hooks.received for hooks in several), ()),
    )


class GradientMoments:
    """Averages a client's minibatch gradients and their squares: estimates of gradient and empirical Fisher.

    Args:
        factors: Factor of the squares of each step of an epoch, such as the rows of its minibatch.
    """

    def __init__(self, factors: Sequence[float] = (1.0,)) -> None:
        self._factors = factors
        self._steps = 0
        self._sums: list[torch.Tensor] = []
        self._squares: list[torch.Tensor] = []

    def __call__(self, gradients: list[torch.Tensor]) -> None:
        """Add one step's gradients."""
        factor = self._factors[self._steps % len(self._factors)]
        if self._steps == 0:
            self._sums = [gradient.clone() for gradient in gradients]
            self._squares = [factor * gradient**2 for gradient in gradients]
        else:
            torch._foreach_add_(self._sums, gradients)
            torch._foreach_addcmul_(self._squares, gradients, gradients, value=factor)
        self._steps += 1

    def means(self, model: nn.Module) -> tuple[Params, Params]:
        """Return mean gradient and mean squared gradient by the model's parameter names."""
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        means = {name: total / self._steps for name, total in zip(names, self._sums, strict=True)}
        squares = {name: total / self._steps for name, total in zip(names, self._squares, strict=True)}
        return means, squares
