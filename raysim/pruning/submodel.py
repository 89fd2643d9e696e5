"""Cuts the submodel a mask leaves out of the full model, and puts it back."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.pruning.plan import ChannelPlan
from raysim.types import Mask, Params

Cut = dict[str, dict[int, torch.Tensor]]
"""For every state-dict key that is cut: the kept indices along each cut dimension, ascending."""


def cut_for(plan: ChannelPlan, mask: Mask) -> Cut:
    """Return which indices of which tensors a mask keeps; tensors it leaves whole are absent."""
    cut: Cut = {}
    for key, dims in plan.axes.items():
        for dim, slots in dims.items():
            kept = np.ones(plan.shapes[key][dim], dtype=np.bool_)
            for units, indices in slots:
                kept[indices[~mask.kept[units]].ravel()] = False
            if not kept.all():
                cut.setdefault(key, {})[dim] = torch.from_numpy(np.flatnonzero(kept))
    return cut


def extract_params(params: Params, cut: Cut) -> Params:
    """Return the compact tensors of a submodel; whole tensors are passed on without a copy."""
    return {key: take(tensor, cut.get(key, {})) for key, tensor in params.items()}


def take(tensor: torch.Tensor, dims: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Select indices along several dimensions at once."""
    for dim, indices in dims.items():
        tensor = tensor.index_select(dim, indices)
    return tensor


def region(dims: Mapping[int, torch.Tensor], num_dims: int) -> tuple[torch.Tensor | slice, ...]:
    """Return an index that addresses, in the full tensor, the entries a submodel holds."""
    index: list[torch.Tensor | slice] = [slice(None)] * num_dims
    cut_dims = sorted(dims)
    for place, dim in enumerate(cut_dims):
        shape = [1] * len(cut_dims)
        shape[place] = -1
        index[dim] = dims[dim].view(shape)
    return tuple(index)


def reconstruct(compact: Params, cut: Cut, into: Params) -> Params:
    """Put a submodel's tensors back into the full model's coordinates.

    Entries the submodel does not hold keep the values of `into`, which is left unchanged
    (CA-HFP, arXiv 2603.12591, eq 4: "fill with the current global values").
    """
    full = {}
    for key, tensor in into.items():
        if key in cut:
            tensor = tensor.clone()
            tensor[region(cut[key], tensor.dim())] = compact[key]
        else:
            tensor = compact[key].clone()
        full[key] = tensor
    return full


def zero_dropped(params: Params, cut: Cut) -> Params:
    """Return the full model with every entry the submodel does not hold at zero."""
    return reconstruct(extract_params(params, cut), cut, {key: torch.zeros_like(t) for key, t in params.items()})


def skeleton(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], device: torch.device | str = "cpu"
) -> nn.Module:
    """Return a copy of a model's structure with tensors of other shapes, uninitialised.

    Args:
        model: The full model; it is left unchanged.
        shapes: Shape of every state-dict entry of the copy.
        device: Where the new tensors live; `meta` for counting costs without memory.
    """
    resized: dict[int, object] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for key, tensor in named:
        if key in shapes:
            empty = torch.empty(shapes[key], dtype=tensor.dtype, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            resized[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    small = copy.deepcopy(model, resized)
    for module in small.modules():
        _refit(module)
    return small


def _refit(module: nn.Module) -> None:
    """Make a layer's own attributes agree with the shapes of its tensors."""
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups == module.in_channels == module.out_channels
        out_channels, in_per_group = module.weight.shape[:2]
        if depthwise:
            module.groups = out_channels
        module.out_channels, module.in_channels = out_channels, in_per_group * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
        module.num_features = len(module.weight)


def compact_shapes(plan: ChannelPlan, cut: Cut) -> dict[str, tuple[int, ...]]:
    """Return the shape of every state-dict entry of the submodel."""
    shapes = {}
    for key, full in plan.shapes.items():
        shape = list(full)
        for dim, indices in cut.get(key, {}).items():
            shape[dim] = len(indices)
        shapes[key] = tuple(shape)
    return shapes


def extract(model: nn.Module, plan: ChannelPlan, mask: Mask) -> nn.Module:
    """Return the submodel a mask leaves as an independent module; the model is left unchanged."""
    cut = cut_for(plan, mask)
    small = skeleton(model, compact_shapes(plan, cut))
    load_params(small, extract_params(dict(model.state_dict()), cut))
    return small


def load_params(module: nn.Module, params: Params) -> None:
    """Copy tensors into a module, in place."""
    with torch.no_grad():
        for key, tensor in module.state_dict(keep_vars=True).items():
            tensor.copy_(params[key])


class SubmodelCache:
    """Skeletons by width, so that a model is taken apart only once per width."""

    def __init__(self, model: nn.Module, plan: ChannelPlan) -> None:
        self._model, self._plan = model, plan
        self._by_width: dict[tuple[int, ...], nn.Module] = {}

    def module_for(self, mask: Mask, cut: Cut) -> nn.Module:
        """Return the skeleton of a mask's width; its tensors hold whatever was there last."""
        width = widths(self._plan, mask)
        if width not in self._by_width:
            self._by_width[width] = skeleton(self._model, compact_shapes(self._plan, cut))
        return self._by_width[width]

    def dense(self) -> nn.Module:
        """Return the skeleton of the full model."""
        return self.module_for(Mask(np.ones(self._plan.num_units, dtype=np.bool_)), {})


def widths(plan: ChannelPlan, mask: Mask) -> tuple[int, ...]:
    """Return how many units each group keeps: masks of equal widths leave submodels of equal shape."""
    kept: NDArray[np.bool_] = mask.kept
    return tuple(int(kept[units].sum()) for units in plan.units.values())
