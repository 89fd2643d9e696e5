"""Find the parameters that no loss can change: a bias in front of BatchNorm, or one that the output does not read."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from raysim.core import seeding
from raysim.core.inputs import Inputs, each
from raysim.pruning.proof import call, randomise, tensors_of

ROWS = 8
NOISE = 1e-11
"""Largest gradient, as a share of the model's largest one, that is rounding noise in double precision."""


def without_gradient(model: nn.Module, input_shape: Sequence[int], example: Inputs | None = None) -> frozenset[str]:
    """Return the names of the parameters whose gradient is zero in training mode, whatever loss is minimised.

    The gradient of a random function of the outputs is computed once, in double precision, with random inputs and
    parameters: what is not zero by the structure of the model is then far above rounding noise. Frozen parameters
    have no gradient. A model that does not compute in double precision has all gradients but theirs.

    Args:
        model: The model; it is left unchanged.
        input_shape: Shape of one input.
        example: Inputs whose form the random ones have: whole numbers, such as token ids, are drawn from its values.
            None: floats of the input shape.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    try:
        largest = _largest_gradients(model, input_shape, example)
    except Exception:  # whatever a layer raises in double precision
        return frozenset(frozen)
    scale = max(largest.values(), default=0.0)
    return frozenset(frozen | {name for name, size in largest.items() if not size > NOISE * scale})


def _largest_gradients(model: nn.Module, input_shape: Sequence[int], example: Inputs | None) -> dict[str, float]:
    twin = copy.deepcopy(model).double().train()
    generator = torch.Generator().manual_seed(0)
    randomise(twin, generator)
    like = torch.zeros(1, *input_shape) if example is None else example
    inputs = each(lambda tensor: _random_like(tensor, generator), like)
    with seeding.torch_seeded(0, "gradients"):  # for layers that draw
        outputs = tensors_of(call(twin, inputs))
    total = sum((each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum() for each in outputs)
    trained = {name: parameter for name, parameter in twin.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(torch.as_tensor(total), list(trained.values()), allow_unused=True)
    return {
        name: 0.0 if gradient is None else float(gradient.abs().max())
        for name, gradient in zip(trained, gradients, strict=True)
    }


def _random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return `ROWS` random rows: normal ones of floats, those of whole numbers drawn from their values."""
    shape = (ROWS, *tensor.shape[1:])
    if tensor.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    values = tensor.cpu().flatten()
    return values[torch.randint(len(values), shape, generator=generator)]
