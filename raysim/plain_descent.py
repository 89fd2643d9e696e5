"""Steps of plain SGD that never write down the gradients of large linear layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

LARGE = 2**18
"""Fewest weights of a layer whose gradient is left out; that of a smaller one stays in the processor's cache."""

MOST_ROWS = 64
"""Rows up to which factors are kept; with more, it is the product that takes the time."""

BLOCK = 2**18
"""Weights that are changed together, so that they stay in the processor's cache meanwhile."""


class PlainDescent:
    """Descends along the gradient of a loss, without momentum, penalties or anybody who looks at the gradient.

    The gradient of a linear layer is the product of what comes back to its outputs, `(out, rows)`, and of its inputs,
    `(rows, in)`. It is subtracted from the weights as it is computed, where it would else be written to memory and
    read again.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
        self._parameters, self._learning_rate = parameters, learning_rate
        self._trained = {id(parameter) for parameter in parameters}
        self._layers = [
            module for module in model.modules()
            if type(module) is nn.Linear and "forward" not in vars(module)
            and id(module.weight) in self._trained and module.weight.numel() >= LARGE
        ]  # fmt: skip
        self._factors: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._is_stepping = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let large linear layers compute in a way that leaves the factors of their gradients.

        Both the loss is computed and the step taken in this context: some models compute again on the way back.
        """
        for layer in self._layers:
            layer.forward = partial(self._linear, layer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def step(self, loss: torch.Tensor) -> None:
        """Change the parameters in place."""
        self._is_stepping = True
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        self._is_stepping = False
        known = {place: gradient for place, gradient in enumerate(gradients) if gradient is not None}
        if known:
            weights = [self._parameters[place].data for place in known]
            torch._foreach_add_(weights, list(known.values()), alpha=-self._learning_rate)
        for weight, back, inputs in self._factors:
            _add_product(weight.data, back.t(), inputs, -self._learning_rate)
        self._factors.clear()

    def keeps(self, weight: torch.Tensor, back: torch.Tensor, inputs: torch.Tensor) -> bool:
        """Keep the factors of a gradient, unless they are large or the gradient is not that of a step."""
        if not self._is_stepping or len(inputs) > MOST_ROWS:
            return False
        self._factors.append((weight, back, inputs))
        return True

    def _linear(self, layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        if id(layer.weight) not in self._trained:  # a functional call computes with other weights
            return nn.functional.linear(inputs, layer.weight, layer.bias)
        outputs: torch.Tensor = _Linear.apply(inputs, layer.weight, layer.bias, self)
        return outputs


def _add_product(weights: torch.Tensor, left: torch.Tensor, right: torch.Tensor, factor: float) -> None:
    """Add factor x left @ right to weights, in place."""
    rows = max(1, BLOCK // weights.shape[1])
    for start in range(0, len(weights), rows):
        weights[start : start + rows].addmm_(left[start : start + rows], right, alpha=factor)


class _Linear(torch.autograd.Function):
    """A linear layer whose backward pass leaves the weights' gradient out, where its factors are kept."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, descent: PlainDescent
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.descent = descent
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (back,), (inputs, weight) = gradients, ctx.saved_tensors
        back_rows, rows = back.reshape(-1, back.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        return (
            back @ weight if ctx.needs_input_grad[0] else None,
            None if ctx.descent.keeps(weight, back_rows, rows) else back_rows.t() @ rows,
            back_rows.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )
