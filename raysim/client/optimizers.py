"""Optimizers of local training, as functions: PyTorch's classes import its compiler, 1.5 s in every actor."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import nn
from torch.optim.adam import adam

from raysim.client.hooks import LocalHooks

Step = Callable[[list[torch.Tensor], float], None]
"""Changes parameters in place, from their gradients and a step size."""


class Descent(Protocol):
    """Changes parameters along the gradient of a loss."""

    def watching(self) -> AbstractContextManager[object]:
        """Return a context manager for computing the loss and taking the step."""
        ...

    def step(self, loss: torch.Tensor) -> None:
        """Change the parameters in place."""
        ...


class HookedDescent:
    """Steps an optimizer along gradients that hooks see and may replace."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        step: Step,
        learning_rate: float,
        clip_norm: float | None,
        hooks: LocalHooks,
    ) -> None:
        """Prepare to train parameters.

        Args:
            parameters: The trained parameters.
            step: Steps along their gradients.
            learning_rate: Step size, unless a hook chooses it.
            clip_norm: Largest norm of a step's gradients; None: any.
            hooks: Read and correct the gradients.
        """
        self._parameters, self._step, self._clip_norm, self._hooks = parameters, step, clip_norm, hooks
        self._learning_rate = learning_rate

    def watching(self) -> AbstractContextManager[object]:
        """Return a context that does nothing."""
        return nullcontext()

    def step(self, loss: torch.Tensor) -> None:
        """Change the parameters in place."""
        gradients = list(torch.autograd.grad(loss, self._parameters, materialize_grads=True))
        for observe in self._hooks.observe:
            observe(gradients)
        for correct in self._hooks.correct:
            gradients = correct(gradients)
        if self._clip_norm is not None:
            gradients = clipped(gradients, self._clip_norm)
        rate = self._hooks.rate
        self._step(gradients, self._learning_rate if rate is None else rate())


def clipped(gradients: list[torch.Tensor], max_norm: float) -> list[torch.Tensor]:
    """Return gradients scaled so that their common norm is at most `max_norm`."""
    norm = nn.utils.get_total_norm(gradients)
    return list(torch._foreach_mul(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0)))


def optimizer_step(optimizer: str, parameters: Sequence[nn.Parameter], momentum: float, weight_decay: float) -> Step:
    """Return the step of an optimizer, which changes parameters in place; its state starts empty.

    Args:
        optimizer: A name of `OPTIMIZERS`.
        parameters: The trained parameters.
        momentum: SGD's momentum, or the first beta of Adam and AdamW.
        weight_decay: L2 penalty that is added to the gradients; of AdamW, the decay of the weights.
    """
    return OPTIMIZERS[optimizer]([parameter.data for parameter in parameters], momentum, weight_decay)


def sgd(weights: list[torch.Tensor], momentum: float, weight_decay: float, nesterov: bool = False) -> Step:
    """Return SGD's step with momentum, as `torch.optim.SGD` takes it."""
    velocity: list[torch.Tensor] = []

    def step(gradients: list[torch.Tensor], learning_rate: float) -> None:
        if weight_decay:
            gradients = list(torch._foreach_add(gradients, weights, alpha=weight_decay))
        if momentum and not velocity:
            velocity.extend(gradient.clone() for gradient in gradients)
        elif momentum:
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, gradients)
        if nesterov:
            gradients = list(torch._foreach_add(gradients, velocity, alpha=momentum))
        torch._foreach_add_(weights, gradients if nesterov or not momentum else velocity, alpha=-learning_rate)

    return step


def adam_step(
    weights: list[torch.Tensor],
    momentum: float,
    weight_decay: float,
    *,
    decoupled: bool = False,
) -> Step:
    """Return the step of Adam as `torch.optim.Adam` takes it, with decoupled decay that of `torch.optim.AdamW`."""
    means, squares = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
    counts = [torch.zeros(()) for _ in weights]

    def step(gradients: list[torch.Tensor], learning_rate: float) -> None:
        adam(
            weights,
            gradients,
            means,
            squares,
            [],
            counts,
            foreach=True,
            decoupled_weight_decay=decoupled,
            amsgrad=False,
            beta1=momentum,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )

    return step


OPTIMIZERS: dict[str, Callable[[list[torch.Tensor], float, float], Step]] = {
    "sgd": sgd,
    "nesterov": partial(sgd, nesterov=True),
    "adam": adam_step,
    "adamw": partial(adam_step, decoupled=True),
}
