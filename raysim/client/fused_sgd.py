"""Step plain SGD without writing the gradients of large linear layers: W1's clients train 1.07 times as fast.

Measured by `jobs/bench_training.py --compare fused-sgd`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

LARGE = 2**18
"""Smallest number of weights of such a layer; the gradient of a smaller one stays in the processor's cache."""

MOST_ROWS = 64
"""Largest number of rows; with more rows, the product of the factors costs more than writing the gradient."""

BLOCK = 2**18
"""Number of weights that are changed at a time, so that they stay in the processor's cache."""

Factors = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""For each use of a layer: weight `(out, in)`, gradient of its outputs `(rows, out)`, inputs `(rows, in)`."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class PlainDescent:
    """Steps of SGD without momentum, penalties or hooks that read the gradient.

    The gradient of a linear layer's weight is a product: the gradient of its outputs, `(out, rows)`, times its
    inputs, `(rows, in)`. This product is subtracted from the weight block by block as it is computed, so that it is
    never written to memory and read again.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
        """Prepare to train a model.

        Args:
            model: A chain of layers; see `is_chain`.
            parameters: The parameters of it that are trained.
            learning_rate: Step size.
        """
        self._parameters, self._learning_rate = parameters, learning_rate
        trained = {id(parameter) for parameter in parameters}
        weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
        self._large = {id(weight) for weight in weights if id(weight) in trained and weight.numel() >= LARGE}
        self._factors: Factors = []

    def watching(self) -> AbstractContextManager[object]:
        """Return the context in which the loss is computed and the step made."""
        return _FactoredLinear(self._large, self._factors)

    def step(self, loss: torch.Tensor) -> None:
        """Change the parameters in place."""
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        written = {index: gradient for index, gradient in enumerate(gradients) if gradient is not None}
        if written:
            weights = [self._parameters[index].data for index in written]
            torch._foreach_add_(weights, list(written.values()), alpha=-self._learning_rate)
        for weight, output_gradient, inputs in self._factors:
            _add_product(weight.data, output_gradient.t(), inputs, -self._learning_rate)
        self._factors.clear()


def is_chain(module: nn.Module) -> bool:
    """Whether a model is a chain of PyTorch's own layers of real numbers, without hooks or other code in between.

    Only then is it certain that nothing but the layer itself uses a layer's weights or reads their gradients.
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


class _FactoredLinear(TorchFunctionMode):
    """Lets linear layers with a large weight keep the factors of its gradient."""

    def __init__(self, large: set[int], factors: Factors) -> None:
        super().__init__()
        self._large, self._factors = large, factors

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute a linear layer with a large weight; pass on every other call."""
        if func is nn.functional.linear and id(args[1]) in self._large:
            return _Linear.apply(*args, self._factors)
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """Linear layer whose backward pass keeps the factors of the weight's gradient where they have few rows."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, factors: Factors
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.factors = factors
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (inputs, weight) = gradients, ctx.saved_tensors
        gradient_rows, rows = gradient.reshape(-1, gradient.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        is_small = len(rows) <= MOST_ROWS
        if is_small:
            ctx.factors.append((weight, gradient_rows, rows))
        return (
            gradient @ weight if ctx.needs_input_grad[0] else None,
            None if is_small else gradient_rows.t() @ rows,
            gradient_rows.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )
