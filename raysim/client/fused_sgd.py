"""Steps of plain SGD that do not write down the gradients of large linear layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

LARGE = 2**18
"""Fewest weights of a layer whose gradient is left out; that of a smaller one stays in the processor's cache."""

MOST_ROWS = 64
"""Rows up to which a gradient is left out; with more, it is the product of its factors that takes the time."""

BLOCK = 2**18
"""Weights that are changed together, so that they stay in the processor's cache meanwhile."""

Factors = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Weights, what comes back to the layer's outputs `(rows, out)`, and its inputs `(rows, in)`."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class PlainDescent:
    """Descends along the gradient of a loss, without momentum, penalties or anybody who looks at the gradient.

    The gradient of a linear layer is the product of what comes back to its outputs, `(out, rows)`, and of its inputs,
    `(rows, in)`. It is subtracted from the weights as it is computed, where it would else be written to memory and
    read again.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
        """Prepare to train a model.

        Args:
            model: A chain of layers; see `is_chain`.
            parameters: What is trained of it.
            learning_rate: Step size.
        """
        self._parameters, self._learning_rate = parameters, learning_rate
        trained = {id(parameter) for parameter in parameters}
        self._layers = [
            layer for layer in model.modules()
            if isinstance(layer, nn.Linear) and id(layer.weight) in trained and layer.weight.numel() >= LARGE
        ]  # fmt: skip
        self._factors: Factors = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Return the context in which the loss is computed, and the step taken."""
        for layer in self._layers:
            layer.forward = partial(_linear, layer, self._factors)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def step(self, loss: torch.Tensor) -> None:
        """Change the parameters in place."""
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        known = {place: gradient for place, gradient in enumerate(gradients) if gradient is not None}
        if known:
            weights = [self._parameters[place].data for place in known]
            torch._foreach_add_(weights, list(known.values()), alpha=-self._learning_rate)
        for weight, back, inputs in self._factors:
            _add_product(weight.data, back.t(), inputs, -self._learning_rate)
        self._factors.clear()


def is_chain(module: nn.Module) -> bool:
    """Whether a model is a chain of PyTorch's own layers of real numbers, with nobody's code in between.

    Only then it is sure that all a layer's weights are used for is that layer.
    """
    if any(getattr(module, hooks) for hooks in HOOKS) or "forward" in vars(module):
        return False
    if type(module) is nn.Sequential:
        return all(is_chain(layer) for layer in module)
    own = list(module.parameters(recurse=False))
    is_layer = type(module).__module__.startswith("torch.nn.modules.") and not list(module.children())
    return is_layer and all(each.is_floating_point() and not each._backward_hooks for each in own)


def _add_product(weights: torch.Tensor, left: torch.Tensor, right: torch.Tensor, factor: float) -> None:
    """Add factor x left @ right to weights, in place."""
    rows = max(1, BLOCK // weights.shape[1])
    for start in range(0, len(weights), rows):
        weights[start : start + rows].addmm_(left[start : start + rows], right, alpha=factor)


def _linear(layer: nn.Linear, factors: Factors, inputs: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = _Linear.apply(inputs, layer.weight, layer.bias, factors)
    return outputs


class _Linear(torch.autograd.Function):
    """A linear layer whose backward pass keeps the factors of the weights' gradient, where they are small."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, factors: Factors
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.factors = factors
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (back,), (inputs, weight) = gradients, ctx.saved_tensors
        back_rows, rows = back.reshape(-1, back.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        is_small = len(rows) <= MOST_ROWS
        if is_small:
            ctx.factors.append((weight, back_rows, rows))
        return (
            back @ weight if ctx.needs_input_grad[0] else None,
            None if is_small else back_rows.t() @ rows,
            back_rows.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )
