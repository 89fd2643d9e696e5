"""List, for each type of layer, the tensors and attributes that cutting channels changes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raysim.pruning import attention, recurrent
from raysim.pruning.groups import Role

Convolution = nn.modules.conv._ConvNd
Transposed = nn.modules.conv._ConvTransposeNd


class UnsupportedLayerError(ValueError):
    """A channel group reaches a layer whose tensors cannot be cut."""


@dataclass(frozen=True, slots=True)
class Side:
    """The channels that a layer reads or writes.

    Attributes:
        channels: Number of channels.
        tensors: The layer's tensors that hold them: name, dimension and role.
        together: Number of groups of neighbours into which the layer divides its channels, each of which must lose
            the same relative positions; 1: channels can be dropped one by one.
        wraps: Whether the tensor's dimension only counts the positions within a group.
        repeats: How often the tensors of the layer's own weights hold the channels, one after another: the gates of a
            recurrent layer.
    """

    channels: int
    tensors: tuple[tuple[str, int, Role], ...]
    together: int = 1
    wraps: bool = False
    repeats: int = 1


def side_of(layer: str, module: nn.Module, reads: bool) -> Side:
    """Return the channels that a layer reads, or those that it writes.

    Args:
        layer: The layer's name, for the error.
        module: The layer.
        reads: Whether to return its inputs; layers that do not mix channels (norms, depthwise convolutions) have
            only one side.

    Raises:
        UnsupportedLayerError: If the layer's channels cannot be cut.
    """
    if isinstance(module, Convolution):
        return _side_of_convolution(layer, module, reads)
    if isinstance(module, nn.Linear):
        if reads:
            return Side(module.in_features, (("weight", 1, "consumer"),))
        return Side(module.out_features, _present(module, ("weight", "bias"), "weight"))
    if isinstance(module, nn.Embedding) and not reads:
        return Side(module.embedding_dim, (("weight", 1, "weight"),))
    return _side_of_norm(layer, module)


def _side_of_convolution(layer: str, conv: Convolution, reads: bool) -> Side:
    transposed = isinstance(conv, Transposed)
    if is_depthwise(conv):
        return Side(conv.out_channels, _present(conv, ("weight", "bias"), "weight"))
    if conv.groups > 1 and (transposed or conv.groups == conv.out_channels):
        kind = "transposed " if transposed else ""
        raise UnsupportedLayerError(f"layer {layer!r} is a {kind}convolution whose groups cannot be cut alike")
    if reads:
        weight: tuple[tuple[str, int, Role], ...] = (("weight", 0 if transposed else 1, "consumer"),)
        return Side(conv.in_channels, weight, together=conv.groups, wraps=True)
    own: tuple[tuple[str, int, Role], ...] = (("weight", 1 if transposed else 0, "weight"),)
    return Side(conv.out_channels, own + _present(conv, ("bias",), "weight"), together=conv.groups)


def _side_of_norm(layer: str, module: nn.Module) -> Side:
    affine = _present(module, ("weight", "bias"), "weight")
    if isinstance(module, nn.modules.batchnorm._NormBase):
        tensors = affine + _present(module, ("running_mean", "running_var"), "statistic")
        if tensors or isinstance(module, nn.modules.batchnorm._BatchNorm):
            return Side(module.num_features, tensors)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and affine:
        if len(module.normalized_shape) > 1:
            raise UnsupportedLayerError(f"layer {layer!r} normalises over more than the channels")
        return Side(module.normalized_shape[0], affine)
    elif isinstance(module, nn.GroupNorm) and affine:
        whole = module.num_groups == module.num_channels
        return Side(module.num_channels, affine, together=1 if whole else module.num_groups)
    elif isinstance(module, nn.PReLU):
        return Side(module.num_parameters, affine if module.num_parameters > 1 else ())
    else:
        raise UnsupportedLayerError(f"layer {layer!r} of type {type(module).__name__} is not supported")
    raise UnsupportedLayerError(f"layer {layer!r} of type {type(module).__name__} has no tensors to size it by")


def _present(module: nn.Module, names: tuple[str, ...], role: Role) -> tuple[tuple[str, int, Role], ...]:
    return tuple((name, 0, role) for name in names if getattr(module, name, None) is not None)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution with one filter of its own per channel."""
    return isinstance(module, Convolution) and 1 < module.groups == module.in_channels == module.out_channels


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, or the transposed one of GPT-2."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear layer Conv1D, whose weight is `(inputs, outputs)`."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor) and weight.dim() == 2


def passes_on_channels(module: nn.Module) -> bool:
    """Whether a layer scales or shifts each channel, such as a norm, rather than making new ones."""
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU)
    return isinstance(module, norms) or is_depthwise(module)


def writes_own_channels(module: nn.Module) -> bool:
    """Whether a layer makes new channels, rather than passing on its inputs."""
    return isinstance(module, Convolution | nn.Linear | nn.Embedding) and not is_depthwise(module)


def refit(module: nn.Module) -> None:
    """Set a layer's attributes to the shapes of its tensors; a layer whose type allows no such shapes changes it."""
    if recurrent.is_recurrent(module):
        recurrent.refit(module)
    elif attention.is_attention(module):
        attention.refit(module)
    elif isinstance(module, nn.TransformerEncoder):
        attention.refit_encoder(module)
    elif isinstance(module, Convolution):
        _refit_convolution(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif is_transposed(module):
        _refit_transposed(module)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if sized is None else len(sized)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        if module.num_groups == module.num_channels:
            module.num_groups = len(module.weight)
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _refit_transposed(linear: Any) -> None:
    for name, size in zip(("nx", "nf"), linear.weight.shape, strict=True):
        if hasattr(linear, name):
            setattr(linear, name, size)


def _refit_convolution(conv: Convolution) -> None:
    first, second = conv.weight.shape[:2]
    if is_depthwise(conv):
        conv.groups = first
    if isinstance(conv, Transposed):
        conv.in_channels, conv.out_channels = first, second * conv.groups
    else:
        conv.out_channels, conv.in_channels = first, second * conv.groups
