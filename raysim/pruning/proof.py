"""Prove channel groups in numbers: the submodel computes what the full model computes with zeros for the rest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from raysim.core.errors import first_line
from raysim.pruning import submodel
from raysim.pruning.groups import ChannelGroup, ChannelGroups
from raysim.pruning.masks import Mask

TOLERANCE = 1e-8
"""Largest relative error of a proof in double precision."""

Forward = Callable[[nn.Module, Any], Any]
"""Applies a model to an example: `(model, example) -> output`."""

Shapes = Mapping[str, tuple[int, ...]]


def call(model: nn.Module, example: Any) -> Any:
    """Apply a model to an example: a tuple or list is its arguments, a mapping its named arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def on_a_copy(forward: Forward | None) -> Forward:
    """Return a forward, `call` by default, that gets a copy of the example: a model may change its input."""
    given = forward or call

    def copied(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf

    return lambda model, example: given(model, _pytree.tree_map(copied, example))


def prove(
    model: nn.Module,
    forward: Forward,
    example: Any,
    groups: Sequence[ChannelGroup],
    shapes: Shapes,
    known: Sequence[ChannelGroup] = (),
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Return the groups that can be cut together, and the reasons for the others.

    First all groups are tried at once, then halves of those that fail: one bad group among n costs log n proofs.

    Args:
        model: The model, in double precision and eval mode, its parameters randomised.
        forward: Applies it to the example.
        example: A batch of at least two inputs.
        groups: The groups to prove.
        shapes: Shape of every state-dict entry of the full model.
        known: Groups proved before, together with which they are to be cut.
    """
    proved: list[ChannelGroup] = []
    disproved: dict[str, str] = {}

    def settle(some: Sequence[ChannelGroup]) -> None:
        if not some:
            return
        fault = fault_of(model, forward, example, ChannelGroups((*known, *proved, *some), shapes, None, {}))
        if fault is None:
            proved.extend(some)
        elif len(some) == 1:
            disproved[some[0].name] = fault
        else:
            settle(some[: len(some) // 2])
            settle(some[len(some) // 2 :])

    settle(groups)
    return proved, disproved


def fault_of(model: nn.Module, forward: Forward, example: Any, groups: ChannelGroups) -> str | None:
    """Compare a random submodel's outputs with those of the full model with dropped entries at zero.

    Returns:
        The fault. None: every output agrees within the tolerance.
    """
    cut = submodel.cut_for(groups, about_half_of_each(groups, np.random.default_rng(0)))
    try:
        with torch.no_grad():
            expected = tensors_of(full_without_dropped(model, forward, example, groups.shapes, cut))
            found = tensors_of(forward(compact(model, groups, cut), example))
    except Exception as error:  # whatever a layer raises when channels are missing
        return f"what is left does not run without it: {first_line(error)}"
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return "cutting it changes the shape of the outputs"
    errors = [_relative(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
    if all(error < TOLERANCE for error in errors):
        return None
    return f"cutting it changes what the rest computes (relative error {max(errors):.1e})"


def full_without_dropped(model: nn.Module, forward: Forward, example: Any, shapes: Shapes, cut: submodel.Cut) -> Any:
    """Return what the full model computes with every dropped entry at zero.

    Norms that mix channels (LayerNorm, GroupNorm, RMSNorm, and norms by hand) compute their statistics over the kept
    channels only: a missing channel cannot count as a zero.
    """
    full = submodel.skeleton(model, shapes, device="meta")
    submodel.adopt(full, submodel.zero_dropped(dict(model.state_dict()), cut))
    for name, module in full.named_modules():
        _keep_statistics(name, module, cut)
    with KeptStatistics(full, cut):
        return forward(full, example)


def compact(model: nn.Module, groups: ChannelGroups, cut: submodel.Cut) -> nn.Module:
    """Return the submodel; whole tensors are shared with the model."""
    small = submodel.skeleton(model, submodel.compact_shapes(groups, cut), "meta", groups.attributes)
    submodel.adopt(small, submodel.extract_params(dict(model.state_dict()), cut))
    return small


class KeptStatistics(TorchFunctionMode):
    """Lets norms that mix channels read only the kept channels; their other outputs are zero."""

    def __init__(self, model: nn.Module, cut: submodel.Cut) -> None:
        super().__init__()
        named = model.state_dict(keep_vars=True)
        kept = {id(named[key]): dims[0] for key, dims in cut.items() if 0 in dims}
        self._kept = {weight: indices for weight, indices in kept.items() if len(indices)}  # none: in a dropped block

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute a norm whose weight is cut over the kept channels; pass on every other call."""
        kwargs = kwargs or {}
        rule = _NORMS.get(func)
        if rule is not None:
            dim, shape_index = rule
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            if id(weight) in self._kept:
                return _on_kept(func, self._kept[id(weight)], dim, shape_index, args, kwargs)
        return func(*args, **kwargs)


SCALE_TOLERANCE = 1e-3
"""Largest relative change of a norm's outputs when its inputs are doubled: none, but for its epsilon."""


def _keep_statistics(name: str, module: nn.Module, cut: submodel.Cut) -> None:
    """Let a norm that a model computes by hand read only the kept channels, in place; its other outputs are zero.

    It is a module without children whose parameters are vectors over the channels, the last dimension, and whose
    outputs stay the same when its inputs are doubled.
    """
    parameters = dict(module.named_parameters())
    indices = [cut.get(f"{name}.{key}".lstrip("."), {}).get(0) for key in parameters]
    kept = indices[0] if indices else None
    is_known = type(module).__module__.startswith("torch.nn.") or list(module.children())
    if is_known or kept is None or not len(kept) or any(each.dim() != 1 for each in parameters.values()):
        return
    if not all(each is not None and torch.equal(each, kept) for each in indices):
        return
    forward, narrow = module.forward, {key: parameter[kept] for key, parameter in parameters.items()}

    def over_kept(inputs: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = forward(inputs)
        if whole.shape != inputs.shape or _relative(forward(2 * inputs), whole) > SCALE_TOLERANCE:
            return whole
        vars(module)["forward"] = forward
        normed = functional_call(module, narrow, (inputs.index_select(-1, kept),))
        vars(module)["forward"] = over_kept
        return torch.zeros_like(inputs).index_copy_(-1, kept, normed)

    vars(module)["forward"] = over_kept


_NORMS: dict[Any, tuple[int, int | None]] = {
    nn.functional.layer_norm: (-1, 1),
    nn.functional.rms_norm: (-1, 1),
    nn.functional.group_norm: (1, None),
}
"""The dimension that a norm mixes, and the index of the argument that holds its size."""


def _on_kept(
    func: Any, kept: torch.Tensor, dim: int, shape_index: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor:
    inputs: torch.Tensor = args[0]
    own = [each[kept] if isinstance(each, torch.Tensor) else each for each in args[1:]]
    if shape_index is not None:
        own[shape_index - 1] = (len(kept),)
    named = {name: each[kept] if isinstance(each, torch.Tensor) else each for name, each in kwargs.items()}
    normed = func(inputs.index_select(dim, kept), *own, **named)
    return torch.zeros_like(inputs).index_copy_(dim % inputs.dim(), kept, normed)


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw new parameters and running statistics, so that no two channels are equal."""
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        if key.endswith("running_var") or tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            fan_in = max(1, tensor[0].numel()) if tensor.dim() else 1
            bound = (6 / fan_in) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)


def about_half_of_each(groups: ChannelGroups, rng: np.random.Generator) -> Mask:
    """Return a mask that keeps some random channels of each group, independently, and no block.

    It keeps between a third and two thirds: groups of one size that are only cut alike come out unlike.
    """
    kept: NDArray[np.bool_] = np.zeros(groups.num_units, dtype=np.bool_)
    for group in groups.groups:
        if group.kind == "block":
            continue
        least = max(1, -(-group.size // 3))
        count = rng.integers(least, max(least, 2 * group.size // 3) + 1)
        kept[groups.units[group.name].start + rng.permutation(group.size)[:count]] = True
    return Mask(kept)


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Return the floating-point tensors in a model's output, in any containers."""
    leaves = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
