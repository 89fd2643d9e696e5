"""Count what one training step of a model costs: parameters, bytes, FLOPs, saved activations, memory."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysim.core.inputs import Inputs, predict
from raysim.core.tensors import floating, frozen_keys

BATCH = 2
"""Examples in the counted step: BatchNorm needs two."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Costs of a model; `train_flops` and `activation_bytes` are per example and training step.

    FLOPs count two per multiply-accumulate of convolutions and matrix products, forward and backward, as
    PyTorch's counter does. `model_bytes` counts floating-point parameters and buffers; `gradient_bytes` counts the
    parameters that are trained, `frozen_bytes` those of floating-point numbers that are not.
    """

    parameters: int
    model_bytes: int
    gradient_bytes: int
    train_flops: int
    activation_bytes: int
    frozen_bytes: int = 0


def count(model: nn.Module, input_shape: Sequence[int], example: Inputs | None = None) -> ModelCost:
    """Count the costs of a model in training mode; on the meta device nothing is computed.

    Args:
        model: The model; training changes its running statistics.
        input_shape: Shape of one input.
        example: `BATCH` inputs, for a model whose costs depend on their values. None: zeros on the model's device.

    The first count of a process imports triton and PyTorch's compiler, which takes seconds: PyTorch's counter and its
    meta device reach them.
    """
    from torch.utils.flop_counter import FlopCounterMode  # not at the top: an actor counts nothing and starts sooner

    example = zeros(model, input_shape) if example is None else example
    model.train()
    saved: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    own_storages = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    attention = sdpa_kernel(SDPBackend.MATH)  # not every device has the other kernels
    counting = FlopCounterMode(display=False, custom_mapping=_CONVOLUTION_FORMULAS)
    with attention, _without_fused_kernels(), counting as counter:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            output = predict(model, example)
        torch.autograd.backward(output.sum())
    model.zero_grad(set_to_none=True)
    activations = sum(storage.nbytes() for key, storage in saved.items() if key not in own_storages)
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        model_bytes=transfer_bytes(model),
        gradient_bytes=sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad),
        train_flops=counter.get_total_flops() // BATCH,
        activation_bytes=activations // BATCH,
        frozen_bytes=_bytes_of(model, frozen_keys(model)),
    )


def zeros(model: nn.Module, input_shape: Sequence[int]) -> torch.Tensor:
    """Return `BATCH` inputs of zeros on the model's device."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.zeros(BATCH, *input_shape, device=device)


def weight_flops(model: nn.Module, input_shape: Sequence[int], example: Inputs | None = None) -> dict[str, float]:
    """Return the training FLOPs per example behind each entry of the weights, by key.

    Weights are the trained parameters with two or more dimensions, whatever module holds them. For those of
    convolutions and linear layers the FLOPs are counted; the rest of the model's is divided equally among the
    entries of the others.
    """
    flops: dict[int, float] = {}

    def count_uses(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        is_convolution = isinstance(layer, nn.modules.conv._ConvNd)
        positions = prod(output.shape[2:]) if is_convolution else prod(output.shape[1:-1])
        passes = 1 + int(inputs[0].requires_grad) + 1  # forward, gradient of the inputs, gradient of the weight
        weight = id(layer.weight)
        flops[weight] = flops.get(weight, 0) + 2 * passes * positions

    layers = [each for each in model.modules() if isinstance(each, nn.modules.conv._ConvNd | nn.Linear)]
    handles = [layer.register_forward_hook(count_uses) for layer in layers]
    try:
        model.train()
        predict(model, zeros(model, input_shape) if example is None else example)
    finally:
        for handle in handles:
            handle.remove()
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1 and weight.requires_grad}
    others = sum(weight.numel() for weight in weights.values() if id(weight) not in flops)
    rest = 0.0
    if others:
        counted = sum(flops.get(id(weight), 0) * weight.numel() for weight in model.parameters())
        rest = max(0.0, count(model, input_shape, example).train_flops - counted) / others
    return {name: flops.get(id(weight), rest) for name, weight in weights.items()}


def forward_flops(model: nn.Module, input_shape: Sequence[int], example: Inputs | None = None) -> int:
    """Return the FLOPs per example of a forward pass in training mode."""
    from torch.utils.flop_counter import FlopCounterMode

    counting = FlopCounterMode(display=False, custom_mapping=_CONVOLUTION_FORMULAS)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _without_fused_kernels(), counting as counter:
        predict(model.train(), zeros(model, input_shape) if example is None else example)
    return int(counter.get_total_flops()) // BATCH


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Let the counter see the products inside a recurrent layer: oneDNN computes an LSTM in one call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def training_bytes(cost: ModelCost, optimizer_buffers: int, rows: int) -> int:
    """Return the memory that a training step needs.

    It is the sum of parameters and buffers, their gradients, the optimizer's buffers (as large as the gradients
    each) and what the backward pass saves of a batch.

    Args:
        cost: Costs of the model.
        optimizer_buffers: Buffers that the optimizer keeps per parameter: SGD 1 with momentum, else 0; Adam 2.
        rows: Rows of the batch.

    >>> training_bytes(ModelCost(10, 48, 40, 600, 100), optimizer_buffers=1, rows=7)
    828
    """
    return cost.model_bytes + (1 + optimizer_buffers) * cost.gradient_bytes + rows * cost.activation_bytes


def transfer_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's floating-point parameters and buffers; integer counters are not sent."""
    return _bytes_of(model, floating(model.state_dict()).keys())


def _bytes_of(model: nn.Module, keys: Collection[str]) -> int:
    found = [tensor for key, tensor in model.state_dict().items() if key in keys]
    return sum(tensor.numel() * tensor.element_size() for tensor in found)


def convolution_flops(
    input_shape: Sequence[int], weight_shape: Sequence[int], output_shape: Sequence[int], transposed: bool
) -> int:
    """Return the FLOPs of one convolution; the weight's second dimension already is per group."""
    positions = prod(input_shape[2:] if transposed else output_shape[2:])
    return 2 * input_shape[0] * positions * prod(weight_shape)


def _forward_flops(x: Sequence[int], w: Sequence[int], *others: Any, out_shape: Sequence[int], **_: Any) -> int:
    _bias, _stride, _padding, _dilation, transposed = others[:5]
    return convolution_flops(x, w, out_shape, transposed)


def _backward_flops(grad_out: Sequence[int], x: Sequence[int], w: Sequence[int], *others: Any, **_: Any) -> int:
    """Gradients of input and of weight cost one forward each, in every group (PyTorch ignores groups)."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, output_mask = others
    return (int(output_mask[0]) + int(output_mask[1])) * convolution_flops(x, w, grad_out, transposed)


_CONVOLUTION_FORMULAS = {
    torch.ops.aten.convolution: _forward_flops,
    torch.ops.aten._convolution: _forward_flops,
    torch.ops.aten.convolution_backward: _backward_flops,
}
