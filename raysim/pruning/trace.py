"""Finds the coupled channel groups of a model and proves each of them numerically."""

import copy
import fnmatch
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import nn

from raysim.pruning import submodel
from raysim.pruning.plan import ChannelGroup, ChannelPlan, Role, Slot
from raysim.types import Mask, Params

TOLERANCE = 1e-8
"""Largest relative error of a proof in double precision."""


class UnsupportedLayerError(ValueError):
    """A channel group reaches a layer whose tensors cannot be cut."""


def trace(model: nn.Module, example_input: torch.Tensor, keep_whole: Sequence[str] = ()) -> ChannelPlan:
    """Find which channels of which layers can only be dropped together.

    Args:
        model: Any module that torch-pruning's dependency graph can trace; it is left unchanged.
        example_input: A batch of at least two inputs.
        keep_whole: Names of layers whose output channels are never dropped, with wildcards.

    Returns:
        A plan whose every group satisfies: in eval mode, the compact submodel computes what the full model
        computes with the dropped entries at zero. Groups that do not are left whole, with the reason.
    """
    twin = copy.deepcopy(model).double().requires_grad_(True).eval()
    example = example_input.double()
    randomise(twin, torch.Generator().manual_seed(0))
    groups, unprunable = _candidates(twin, example)
    shapes = {key: tuple(tensor.shape) for key, tensor in twin.state_dict().items()}
    cuttable: list[ChannelGroup] = []
    outputs = None
    for group in groups:
        pattern = _kept_whole(group, keep_whole)
        if _is_output(twin, example, group, shapes):
            outputs = group
        elif pattern is not None:
            unprunable[group.name] = f"kept whole, as {pattern!r} asks"
        else:
            cuttable.append(group)
    proved, disproved = prove(twin, example, cuttable, shapes)
    return ChannelPlan(tuple(proved), shapes, outputs, unprunable | disproved)


def prove(
    model: nn.Module, example: torch.Tensor, groups: list[ChannelGroup], shapes: dict[str, tuple[int, ...]]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Return the groups that can be cut, and the reasons for the others; one by one only where it must be."""
    if not groups or relative_error(model, example, ChannelPlan(tuple(groups), shapes, None, {})) < TOLERANCE:
        return groups, {}
    proved, disproved = [], {}
    for group in groups:
        error = relative_error(model, example, ChannelPlan((group,), shapes, None, {}))
        if error < TOLERANCE:
            proved.append(group)
        else:
            disproved[group.name] = f"cutting it changes what the rest computes (relative error {error:.1e})"
    return proved, disproved


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters and running statistics anew, so that no two channels look alike."""
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if key.endswith("running_var") or tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            fan_in = max(1, tensor[0].numel())
            tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)


def relative_error(model: nn.Module, example: torch.Tensor, plan: ChannelPlan) -> float:
    """Compare a random submodel's output with the full model's, dropped entries at zero."""
    rng = np.random.default_rng(0)
    kept = np.concatenate([_half(group.size, rng) for group in plan.groups])
    mask = Mask(kept)
    cut = submodel.cut_for(plan, mask)
    params: Params = dict(model.state_dict())
    try:
        with torch.no_grad():
            compact = submodel.extract(model, plan, mask)(example)
            expected = torch.func.functional_call(model, submodel.zero_dropped(params, cut), (example,))
    except (RuntimeError, ValueError):
        return float("inf")
    if compact.shape != expected.shape:
        return float("inf")
    error = float((compact - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    return error if error == error else float("inf")


def _half(size: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
    kept = np.zeros(size, dtype=np.bool_)
    kept[rng.permutation(size)[: max(1, size // 2)]] = True
    return kept


def _candidates(model: nn.Module, example: torch.Tensor) -> tuple[list[ChannelGroup], dict[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=(example,))
        found = list(graph.get_all_groups())
    names = {id(module): name for name, module in model.named_modules()}
    order = {name: place for place, name in enumerate(names.values())}
    groups, unprunable = [], {}
    for dependencies in found:
        producers = [
            names[id(dependency.target.module)]
            for dependency, _ in dependencies
            if id(dependency.target.module) in names and graph.is_out_channel_pruning_fn(dependency.handler)
        ]
        name = min(producers, key=order.__getitem__)
        try:
            groups.append(_to_group(name, dependencies, graph, names))
        except UnsupportedLayerError as error:
            unprunable[name] = str(error)
    groups.sort(key=lambda group: order[group.name])
    return groups, unprunable


def _to_group(name: str, dependencies: Any, graph: Any, names: dict[int, str]) -> ChannelGroup:
    size = len(dependencies[0].root_idxs)
    slots: dict[tuple[str, int], Slot] = {}
    for item in dependencies:
        module = item.dep.target.module
        if id(module) not in names or not list(module.parameters(recurse=False)):
            continue
        reads = not graph.is_out_channel_pruning_fn(item.dep.handler)
        units = _indices_by_unit(item.idxs, item.root_idxs, size, names[id(module)])
        for slot in _slots_of(names[id(module)], module, units, reads):
            slots.setdefault((slot.key, slot.dim), slot)
    return ChannelGroup(name, size, tuple(slots.values()))


def _indices_by_unit(
    indices: list[int], roots: list[int], size: int, layer: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    by_unit: list[list[int]] = [[] for _ in range(size)]
    for index, root in zip(indices, roots, strict=True):
        by_unit[root].append(int(index))
    if len({len(unit) for unit in by_unit}) != 1:
        raise UnsupportedLayerError(f"its channels reach layer {layer!r} unevenly")
    return np.array(by_unit, dtype=np.int64)


def _slots_of(layer: str, module: nn.Module, units: np.ndarray[Any, np.dtype[np.int64]], reads: bool) -> list[Slot]:
    def slot(tensor: str, dim: int, role: Role) -> Slot:
        return Slot(f"{layer}.{tensor}", dim, units, role)

    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        statistics = ["running_mean", "running_var"] if module.track_running_stats else []
        return [slot(key, 0, "weight") for key in ("weight", "bias") if getattr(module, key) is not None] + [
            slot(key, 0, "statistic") for key in statistics
        ]
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1:
        if not module.groups == module.in_channels == module.out_channels:
            raise UnsupportedLayerError(f"layer {layer!r} is a grouped convolution that is not depthwise")
        reads = False
    elif not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        raise UnsupportedLayerError(f"layer {layer!r} of type {type(module).__name__} is not supported")
    if reads:
        return [slot("weight", 1, "consumer")]
    return [slot("weight", 0, "weight")] + ([slot("bias", 0, "weight")] if module.bias is not None else [])


def _kept_whole(group: ChannelGroup, patterns: Sequence[str]) -> str | None:
    layers = {slot.key.rsplit(".", 1)[0] for slot in group.slots if slot.role == "weight"}
    return next((p for p in patterns if any(fnmatch.fnmatchcase(layer, p) for layer in layers)), None)


def _is_output(
    model: nn.Module, example: torch.Tensor, group: ChannelGroup, shapes: dict[str, tuple[int, ...]]
) -> bool:
    """Whether dropping units of the group changes the shape of the output."""
    if any(slot.role == "consumer" for slot in group.slots):
        return False
    plan = ChannelPlan((group,), shapes, None, {})
    mask = Mask(np.arange(group.size) < max(1, group.size - 1))
    try:
        with torch.no_grad():
            changed: bool = submodel.extract(model, plan, mask)(example).shape != model(example).shape
            return changed
    except (RuntimeError, ValueError):
        return False
