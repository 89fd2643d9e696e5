"""Extract the submodel of a mask from the full model, and reconstruct the full model."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.core.tensors import Params
from raysim.pruning import layers
from raysim.pruning.groups import Attribute, ChannelGroups
from raysim.pruning.masks import Mask

Cut = dict[str, dict[int, torch.Tensor]]
"""For every state-dict key that is cut: the kept indices along each cut dimension, ascending."""


def cut_for(plan: ChannelGroups, mask: Mask) -> Cut:
    """Return the indices of tensors that a mask keeps; whole tensors are absent."""
    cut: Cut = {}
    for pattern in plan.patterns:
        kept = np.ones(pattern.size, dtype=np.bool_)
        for units, indices in pattern.slots:
            kept[indices[~mask.kept[units]].ravel()] = False
        if not kept.all():
            found = torch.from_numpy(np.flatnonzero(kept))
            for key, dim in pattern.dims:
                cut.setdefault(key, {})[dim] = found
    return cut


def extract_params(params: Params, cut: Cut, out: Params | None = None) -> Params:
    """Return the compact tensors of a submodel.

    Args:
        params: The full model's tensors.
        cut: Which indices are kept.
        out: Tensors of the submodel's shapes to write to, such as those of a skeleton. None: new tensors, of which
            whole ones are not copied.

    Returns:
        The compact tensors; `out` if given.
    """
    if out is None:
        return {key: take(tensor, cut.get(key, {})) for key, tensor in params.items()}
    for key, tensor in params.items():
        if key in cut:
            take(tensor, cut[key], out[key])
        else:
            out[key].copy_(tensor)
    return out


def take(tensor: torch.Tensor, dims: Mapping[int, torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
    """Select indices along several dimensions at once; write the result to `out` if given and anything is cut."""
    inner = _entries_behind(tensor, dims)
    if inner > 1 and (out is None or out.is_contiguous()):  # whole kernels at once: several times faster
        rows, columns = dims[0].to(tensor.device), dims[1].to(tensor.device)
        into = None if out is None else out.view(-1, inner)
        kernels = torch.index_select(tensor.view(-1, inner), 0, _pairs(rows, columns, tensor.shape[1]), out=into)
        return kernels.view(len(rows), len(columns), *tensor.shape[2:])
    for count, (dim, indices) in enumerate(dims.items(), start=1):
        into = out if count == len(dims) else None
        tensor = torch.index_select(tensor, dim, indices.to(tensor.device), out=into)
    return tensor


def put(tensor: torch.Tensor, dims: Mapping[int, torch.Tensor], values: torch.Tensor) -> None:
    """Write a submodel's values into a full tensor, in place."""
    values, inner = values.to(tensor), _entries_behind(tensor, dims)
    if inner > 1 and tensor.device.type == "cpu":
        pairs = _pairs(dims[0], dims[1], tensor.shape[1]).numpy()
        _kernels(tensor, inner)[pairs] = _kernels(values.contiguous(), inner)
    else:
        _write(torch.Tensor.index_copy_, tensor, dims, values)


def add(tensor: torch.Tensor, dims: Mapping[int, torch.Tensor], values: torch.Tensor) -> None:
    """Add a submodel's values to a full tensor, in place."""
    _write(torch.Tensor.index_add_, tensor, dims, values.to(tensor))


def _kernels(tensor: torch.Tensor, inner: int) -> NDArray[np.void]:
    """View a contiguous tensor as one item per kernel, which NumPy moves whole: twice as fast as entries."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().view(np.dtype((np.void, inner * tensor.element_size())))


def _write(
    write: Callable[..., torch.Tensor], tensor: torch.Tensor, dims: Mapping[int, torch.Tensor], values: torch.Tensor
) -> None:
    inner = _entries_behind(tensor, dims)
    if inner > 0:
        rows, columns = dims[0].to(tensor.device), dims[1].to(tensor.device)
        pairs = _pairs(rows, columns, tensor.shape[1])
        write(tensor.view(-1, inner), 0, pairs, values.reshape(-1, inner))
    elif len(dims) == 1:
        ((dim, indices),) = dims.items()
        write(tensor, dim, indices.to(tensor.device), values)
    else:
        between = range(min(dims), max(dims))  # whole dimensions among cut ones: indexing would move them back
        index = region({dim: torch.arange(tensor.shape[dim]) for dim in between} | dict(dims), tensor.dim())
        adds = write is torch.Tensor.index_add_
        tensor[index] = tensor[index] + values if adds else values


def _entries_behind(tensor: torch.Tensor, dims: Mapping[int, torch.Tensor]) -> int:
    """Return the number of entries per pair of the first two dimensions; 0: pairs cannot be addressed."""
    if set(dims) != {0, 1} or not tensor.is_contiguous():
        return 0
    return prod(tensor.shape[2:])


def _pairs(rows: torch.Tensor, columns: torch.Tensor, num_columns: int) -> torch.Tensor:
    return (rows[:, None] * num_columns + columns).view(-1)


def region(dims: Mapping[int, torch.Tensor], num_dims: int) -> tuple[torch.Tensor | slice, ...]:
    """Return an index of the entries of a full tensor that a submodel holds."""
    index: list[torch.Tensor | slice] = [slice(None)] * num_dims
    cut_dims = sorted(dims)
    for order, dim in enumerate(cut_dims):
        shape = [1] * len(cut_dims)
        shape[order] = -1
        index[dim] = dims[dim].view(shape)
    return tuple(index)


def reconstruct(compact: Params, cut: Cut, into: Params, out: Params | None = None) -> Params:
    """Write a submodel's tensors back in the full model's coordinates.

    Entries that the submodel does not hold keep the values of `into`, which does not change (CA-HFP, arXiv
    2603.12591, eq 4: "fill with the current global values").

    Args:
        compact: The submodel's tensors.
        cut: The cut of these tensors.
        into: The full model's tensors.
        out: Tensors to write to, with the values of `into`: only the entries of the submodel are written, so that the
            cost is that of the submodel. `into` itself is allowed, and changes then. None: new tensors.

    Returns:
        The full model's tensors; `out` if given.
    """
    if out is None:
        out = {key: tensor.clone() if key in cut else torch.empty_like(tensor) for key, tensor in into.items()}
    for key, tensor in out.items():
        if key in cut:
            put(tensor, cut[key], compact[key])
        else:
            tensor.copy_(compact[key])
    return out


def zero_dropped(params: Params, cut: Cut) -> Params:
    """Return the full model with zeros for entries that the submodel does not hold; whole tensors are shared."""
    zeroed = dict(params)
    for key in zeroed.keys() & cut.keys():
        zeroed[key] = torch.zeros_like(params[key])
        put(zeroed[key], cut[key], take(params[key], cut[key]))
    return zeroed


def held(cut: Cut, params: Params) -> dict[str, torch.Tensor]:
    """Return whether a submodel holds each entry: booleans by key, of size 1 along dimensions that are not cut."""
    coverage = {}
    for key, tensor in params.items():
        coverage[key] = torch.ones([1] * tensor.dim(), dtype=torch.bool)
        for dim, indices in cut.get(key, {}).items():
            along = torch.zeros(tensor.shape[dim], dtype=torch.bool)
            along[indices] = True
            coverage[key] = coverage[key] & along.view([-1 if other == dim else 1 for other in range(tensor.dim())])
    return coverage


def skeleton(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device | str | None = None,
    attributes: Sequence[Attribute] = (),
) -> nn.Module:
    """Return a copy of a model's structure with tensors of other shapes, uninitialised.

    Args:
        model: The full model; it is left unchanged.
        shapes: Shape of every state-dict entry of the copy.
        device: Device of the new tensors, `meta` for counting costs without memory. None: that of the model.
        attributes: Numbers of modules that are proportional to a dimension of a tensor.
    """
    resized = without_graphs(model)
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for key, tensor in named:
        if key in shapes:
            empty = torch.empty(shapes[key], dtype=tensor.dtype, device=device or tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            resized[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    small = copy.deepcopy(model, resized)
    full_shapes = {key: tensor.shape for key, tensor in named}
    for each in attributes:
        owner, kept, whole = small.get_submodule(each.module), shapes[each.key], full_shapes[each.key]
        setattr(owner, each.name, getattr(owner, each.name) * kept[each.dim] // whole[each.dim])
    for module, full in zip(small.modules(), model.modules(), strict=True):
        layers.refit(module)
        if _is_emptied(module, full):
            vars(module)["forward"] = pass_on
    return small


def _is_emptied(module: nn.Module, full: nn.Module) -> bool:
    """Whether a module has lost every entry of its tensors; single numbers do not count."""
    sizes = [(tensor.numel(), other.numel()) for tensor, other in zip(_arrays(module), _arrays(full), strict=True)]
    return bool(sizes) and all(left == 0 < whole for left, whole in sizes)


def _arrays(module: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.dim()]


def pass_on(inputs: torch.Tensor) -> torch.Tensor:
    """Return the inputs: what a dropped block computes."""
    return inputs


def without_graphs(model: nn.Module) -> dict[int, object]:
    """Return copies of tensors that layers have computed (weight norm does), by id: a memo for `copy.deepcopy`."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return {
        id(value): value.detach().clone() for value in values if isinstance(value, torch.Tensor) and not value.is_leaf
    }


def compact_shapes(plan: ChannelGroups, cut: Cut) -> dict[str, tuple[int, ...]]:
    """Return the shape of every state-dict entry of the submodel."""
    shapes = {}
    for key, full in plan.shapes.items():
        shape = list(full)
        for dim, indices in cut.get(key, {}).items():
            shape[dim] = len(indices)
        shapes[key] = tuple(shape)
    return shapes


def extract(model: nn.Module, plan: ChannelGroups, mask: Mask) -> nn.Module:
    """Return the submodel of a mask as an independent module; the model is left unchanged.

    Single entries that the mask drops are zero.
    """
    cut = cut_for(plan, mask)
    small = skeleton(model, compact_shapes(plan, cut), attributes=plan.attributes)
    compact = extract_params(dict(model.state_dict()), cut)
    for key in mask.elements:
        kept = take(kept_elements(mask.elements[key], plan.shapes[key]), cut.get(key, {}))
        compact[key] = compact[key] * kept.to(compact[key].device)
    load_params(small, compact)
    return small


def kept_elements(packed: NDArray[np.uint8], shape: Sequence[int]) -> torch.Tensor:
    """Return whether a hybrid mask keeps each entry of a tensor, booleans of the full model's shape."""
    bits = np.unpackbits(packed, count=prod(shape)).astype(np.bool_)
    return torch.from_numpy(bits).view(tuple(shape))


def load_params(module: nn.Module, params: Params) -> None:
    """Copy tensors into a module, in place."""
    with torch.no_grad():
        for key, tensor in module.state_dict(keep_vars=True).items():
            tensor.copy_(params[key])


def adopt(module: nn.Module, params: Params) -> None:
    """Set a module's parameters and buffers to tensors, without copies."""
    for key, tensor in params.items():
        owner, _, name = key.rpartition(".")
        layer = module.get_submodule(owner)
        if name in layer._parameters:
            layer._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        else:
            layer._buffers[name] = tensor


MOST_SKELETONS = 32
"""Number of widths in the cache; the least recently used one is dropped first."""


class SubmodelCache:
    """Caches skeletons by width, so that each is built only once."""

    def __init__(self, model: nn.Module, plan: ChannelGroups) -> None:
        self._model, self._plan = model, plan
        self._by_width: OrderedDict[tuple[int, ...], nn.Module] = OrderedDict()
        self._spare: list[nn.Module] = []
        saved = model.state_dict().keys()
        self._unsaved = {key: buffer.clone() for key, buffer in model.named_buffers() if key not in saved}

    def module_for(self, mask: Mask, cut: Cut) -> nn.Module:
        """Return the skeleton of a mask's width; the tensors of its state dict hold the values of their last use."""
        width = widths(self._plan, mask)
        if width not in self._by_width:
            is_spare = self._spare and not cut
            shapes = compact_shapes(self._plan, cut)
            new = self._spare.pop() if is_spare else skeleton(self._model, shapes, None, self._plan.attributes)
            self._by_width[width] = new
        self._by_width.move_to_end(width)
        if len(self._by_width) > MOST_SKELETONS:
            self._by_width.popitem(last=False)
        module = self._by_width[width]
        for key, value in self._unsaved.items():
            module.get_buffer(key).copy_(value)
        return module

    def withhold(self, mask: Mask) -> None:
        """Hand out another skeleton of the full model from now on: this one's values are still needed."""
        del self._by_width[widths(self._plan, mask)]

    def take_back(self, modules: Sequence[nn.Module]) -> None:
        """Hand out skeletons of the full model again that were withheld."""
        self._spare += modules

    def dense(self) -> nn.Module:
        """Return the skeleton of the full model."""
        return self.module_for(Mask.whole(self._plan), {})


def widths(plan: ChannelGroups, mask: Mask) -> tuple[int, ...]:
    """Return the number of units that each group keeps; masks of equal widths give submodels of equal shapes."""
    kept: NDArray[np.bool_] = mask.kept
    return tuple(int(kept[units].sum()) for units in plan.units.values())
