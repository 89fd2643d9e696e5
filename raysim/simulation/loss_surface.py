"""A mean loss over fixed rows as a function of the weights: value, gradient and curvature."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from torch import nn

from raysim.core.inputs import Inputs, each, in_double, predict, take
from raysim.core.tensors import Params
from raysim.data.batches import batch_slices
from raysim.task.task import Task

ROWS_PER_PASS = 100
"""Rows of one pass: fixed, since the last bits depend on it; few, since curvature needs every activation at once."""

SummedLoss = Callable[[Params, Inputs, torch.Tensor], torch.Tensor]
"""Summed loss of some rows from weights, inputs and targets."""


@dataclass(frozen=True, slots=True, eq=False)
class LossSurface:
    """F(w): the mean loss of some rows.

    Attributes:
        summed: Summed loss of rows.
        names: Keys of the weights that F is differentiated by.
        inputs: `(rows, ...)`.
        targets: `(rows, ...)`.
    """

    summed: SummedLoss
    names: tuple[str, ...]
    inputs: Inputs
    targets: torch.Tensor

    def on(self, inputs: Inputs, targets: torch.Tensor) -> "LossSurface":
        """Return the same loss on other rows."""
        return replace(self, inputs=each(in_double, inputs), targets=targets)

    def first(self, count: int) -> "LossSurface":
        """Return the same loss on the first rows only."""
        return replace(self, inputs=take(self.inputs, slice(count)), targets=self.targets[:count])

    def value(self, weights: Params) -> float:
        """Return F(w)."""
        with torch.no_grad():
            total = sum(float(self.summed(weights, *self._rows(start))) for start in self._starts())
        return total / len(self.targets)

    def gradient(self, weights: Params) -> Params:
        """Return the gradient of F."""
        total = self._zeros(weights)
        for slopes, _ in self._passes(weights, ()):
            _add(total, slopes)
        return total

    def hessian_product(self, weights: Params, direction: Params) -> Params:
        """Return H v, the product of the Hessian of F with a direction."""
        total = self._zeros(weights)
        for _, (product,) in self._passes(weights, (direction,)):
            _add(total, product)
        return total

    def curvatures(self, weights: Params, directions: Sequence[Params]) -> list[float]:
        """Return v (H v) along each direction v, H the Hessian of F."""
        sums = [0.0] * len(directions)
        for _, products in self._passes(weights, directions):
            for index, (direction, product) in enumerate(zip(directions, products, strict=True)):
                sums[index] += float(dot(product, direction))
        return sums

    def _passes(self, weights: Params, directions: Sequence[Params]) -> Iterator[tuple[Params, Iterator[Params]]]:
        """Yield the gradient of some rows at a time, each with its derivatives along the directions."""
        leaves = {name: weights[name].detach().requires_grad_() for name in self.names}
        for start in self._starts():
            loss = self.summed({**weights, **leaves}, *self._rows(start)) / len(self.targets)
            slopes = _slopes(loss, leaves, create_graph=bool(directions))
            yield slopes, (_slopes(dot(slopes, direction), leaves, retain_graph=True) for direction in directions)

    def _zeros(self, weights: Params) -> Params:
        return {name: torch.zeros_like(weights[name]) for name in self.names}

    def _starts(self) -> range:
        return range(0, len(self.targets), ROWS_PER_PASS)

    def _rows(self, start: int) -> tuple[Inputs, torch.Tensor]:
        rows = slice(start, start + ROWS_PER_PASS)
        return take(self.inputs, rows), self.targets[rows]


def of_model(task: Task, model: nn.Module, inputs: Inputs, targets: torch.Tensor) -> LossSurface:
    """Return the mean loss of a model in eval mode and float64; the model itself is left unchanged."""
    frame = copy.deepcopy(model).double()
    frame.eval()

    def summed(weights: Params, inputs: Inputs, targets: torch.Tensor) -> torch.Tensor:
        return task.loss(predict(frame, inputs, weights), targets, reduction="sum")

    return LossSurface(summed, tuple(name for name, _ in model.named_parameters()), each(in_double, inputs), targets)


def in_float64(params: Params) -> Params:
    """Return parameters and buffers in float64; integer counters as they are."""
    return {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in params.items()}


def diagonal_sums(
    surface: LossSurface, weights: Params, factors: Sequence[Params], draws: int, rng: np.random.Generator
) -> list[float]:
    """Return for each z the sum of h_i z_i^2, h the diagonal of the Hessian H at some weights.

    It is the mean of (z v) H (z v) over Rademacher v (Hutchinson, 1990), exact where H is diagonal. Weighting an
    estimate v (H v) of h with z^2 has the same mean and never less variance: (z_i^2 + z_j^2) H_ij off the diagonal
    where this has 2 z_i z_j H_ij.
    """
    directions = []
    for _ in range(draws):
        signs = {name: rng.integers(0, 2, tuple(weights[name].shape)) * 2.0 - 1 for name in surface.names}
        directions += [{name: z[name] * torch.from_numpy(signs[name]) for name in surface.names} for z in factors]
    found = surface.curvatures(weights, directions)
    return [sum(found[index :: len(factors)]) / draws for index in range(len(factors))]


def largest_curvature(surface: LossSurface, weights: Params, iterations: int, rng: np.random.Generator) -> float:
    """Return the Hessian's largest eigenvalue in absolute value by power iteration, from below: |H v| at |v| = 1."""
    vector = {name: torch.from_numpy(rng.standard_normal(tuple(weights[name].shape))) for name in surface.names}
    size = 0.0
    for _ in range(iterations):
        length = sqrt(squared_norm(vector))
        if length == 0:
            return 0.0
        unit = {name: value / length for name, value in vector.items()}
        vector = surface.hessian_product(weights, unit)
        size = sqrt(squared_norm(vector))
    return size


def gradient_and_variance(surface: LossSurface, weights: Params, batch_size: int) -> tuple[Params, float]:
    """Return the gradient over all rows, and the mean squared distance of the minibatches' gradients from it.

    Minibatches are cut from the rows in their order and count with their rows; a single one has variance 0.
    """
    num_rows = len(surface.targets)
    total, squares = {name: torch.zeros_like(weights[name]) for name in surface.names}, 0.0
    for batch in batch_slices(num_rows, batch_size):
        share = (batch.stop - batch.start) / num_rows
        found = surface.on(take(surface.inputs, batch), surface.targets[batch]).gradient(weights)
        squares += share * squared_norm(found)
        _add(total, {name: share * value for name, value in found.items()})
    return total, max(0.0, squares - squared_norm(total))


def dot(first: Params, second: Params) -> torch.Tensor:
    """Return the inner product over the keys of the first."""
    return torch.stack([(value * second[name]).sum() for name, value in first.items()]).sum()


def squared_norm(values: Params) -> float:
    """Return the sum of all squares."""
    return float(dot(values, values))


def _slopes(value: torch.Tensor, leaves: Params, create_graph: bool = False, retain_graph: bool = False) -> Params:
    """Differentiate a scalar by all leaves; zeros where it does not depend on them."""
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(
        value,
        list(leaves.values()),
        create_graph=create_graph,
        retain_graph=create_graph or retain_graph,
        materialize_grads=True,
    )
    return dict(zip(leaves, found, strict=True))


def _add(total: Params, more: Params) -> None:
    for name, value in total.items():
        value += more[name].detach()
