"""Find the coupled channel groups of a model, and prove each of them in numbers."""

import copy
import fnmatch
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree

from raysim.core.errors import SettingError, UntraceableError, first_line, nearest_first
from raysim.core.tensors import one_thread
from raysim.pruning import layers, proof, submodel
from raysim.pruning.attributes import with_sizes
from raysim.pruning.blocks import residual_blocks
from raysim.pruning.groups import ChannelGroup, ChannelGroups
from raysim.pruning.heads import find_heads
from raysim.pruning.layers import UnsupportedLayerError
from raysim.pruning.masks import Mask
from raysim.pruning.proof import Forward
from raysim.pruning.ranks import embedded_ranks
from raysim.pruning.stand_ins import Part, with_stand_ins
from raysim.pruning.step_limit import MAX_STEPS, StepLimitError, limit_steps
from raysim.pruning.units import UnitTable

ROOTS = (layers.Convolution, nn.Linear, nn.Embedding)
"""Layers whose output channels start a group."""


UNREAD = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers that Torch-Pruning does not read right: it gets stand-ins, or takes them for operations."""


@dataclass(frozen=True, slots=True)
class Found:
    """A group of channels that the tracer found.

    Attributes:
        name: Name of its first layer.
        layers: All layers that its channels pass through, from the one that makes them to those that read them.
        summed: Whether an addition joins channels that several layers make.
        group: The group, or the reason why it cannot be cut.
    """

    name: str
    layers: frozenset[str]
    summed: bool
    group: ChannelGroup | str


def trace(
    model: nn.Module,
    example_input: Any,
    keep_whole: Sequence[str] = (),
    keep_residual: bool = False,
    forward: Forward | None = None,
    max_steps: int = MAX_STEPS,
    blocks: bool = False,
    uncut: Mapping[str, str] | None = None,
) -> ChannelGroups:
    """Find which channels of which layers can only be dropped together; see `ChannelPlan.trace`."""
    if not isinstance(model, nn.Module):
        raise SettingError(f"model is {type(model).__name__}; allowed: a torch.nn.Module")
    _check_example(example_input)
    _check_patterns(model, keep_whole)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise SettingError(f"max_steps={max_steps!r} is not a whole number above 0")
    with one_thread():  # small layers: threads would wait for each other where other processes are busy
        twin, forward = _twin(model), proof.on_a_copy(forward)
        found = _trace(twin, example_input, keep_whole, keep_residual, forward, max_steps, uncut or {})
        return _with_blocks(twin, forward, example_input, found) if blocks else found


def _check_example(example: Any) -> None:
    tensors = [leaf for leaf in _pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise SettingError(f"example_input={type(example).__name__} holds no tensor; allowed: a batch of 2 or more")
    if isinstance(example, torch.Tensor) and (example.dim() == 0 or len(example) < 2):
        raise SettingError(f"example_input of shape {tuple(example.shape)} is not a batch of 2 or more")


def _check_patterns(model: nn.Module, patterns: Sequence[str]) -> None:
    if isinstance(patterns, str):
        raise SettingError(f"keep_whole={patterns!r} is one name; allowed: a list of names")
    names = [name for name, layer in model.named_modules() if list(layer.parameters(recurse=False))]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise SettingError(
                f"keep_whole={pattern!r} matches no layer; layers: {', '.join(nearest_first(pattern, names))}"
            )


def _trace(
    twin: nn.Module,
    example_input: Any,
    keep_whole: Sequence[str],
    keep_residual: bool,
    forward: Forward,
    max_steps: int,
    uncut: Mapping[str, str],
) -> ChannelGroups:
    shapes = {key: tuple(tensor.shape) for key, tensor in twin.state_dict().items()}
    example = _pytree.tree_map(_informative, example_input)
    normal_shapes = _run(twin, forward, example)
    aliases = _aliases(twin)

    def why_whole(group: ChannelGroup) -> str | None:
        pattern = _kept_whole(frozenset({group.name, *group.layers}), keep_whole)
        if pattern is not None:
            return _named(pattern)
        return _reason_of_tensor([slot.key for slot in group.slots], uncut)

    attention = find_heads(twin, forward, example, shapes, aliases, why_whole)
    unprunable, heads = dict(attention.unprunable), attention.groups
    found = _find(with_stand_ins(twin, attention.mixings), forward, example, max_steps, aliases)
    ranks = [each for each in embedded_ranks(twin) if not _kept_whole(frozenset({each.name}), keep_whole)]
    cuttable, outputs = [*ranks], []
    mixed = {name for mixing in attention.mixings for name in mixing.sources}
    for each in found:
        if each.name in mixed:
            continue
        pattern = _kept_whole(each.layers, keep_whole)
        uncut_reason = _reason_of_tensor(_keys_of(each, uncut), uncut)
        if isinstance(each.group, str):
            unprunable[each.name] = uncut_reason or each.group
        elif _is_output(twin, forward, example, normal_shapes, each.group, shapes, aliases):
            outputs.append(each.group)
        elif pattern is not None:
            unprunable[each.name] = _named(pattern)
        elif uncut_reason:
            unprunable[each.name] = uncut_reason
        elif keep_residual and each.summed:
            unprunable[each.name] = "residual stream"
        else:
            cuttable.append(each.group)
    if len(outputs) != 1:
        unprunable |= {group.name: "its channels are outputs of the model" for group in outputs}
    proved, disproved = proof.prove(twin, forward, example, cuttable, shapes, known=heads)
    failed = [group for group in cuttable if group.name in disproved]
    resized = with_sizes(twin, forward, example, failed, shapes, known=[*heads, *proved])
    for group in resized:
        del disproved[group.name]
    unprunable |= disproved | _not_reached(twin, found, [*heads, *ranks])
    groups = sorted([*heads, *proved, *resized], key=_place_in(shapes)) if heads or resized or ranks else proved
    return ChannelGroups(tuple(groups), shapes, outputs[0] if len(outputs) == 1 else None, unprunable)


def _named(pattern: str) -> str:
    return f"left whole, since keep_whole names {pattern!r}"


def _reason_of_tensor(keys: Sequence[str], uncut: Mapping[str, str]) -> str | None:
    """Return why channels are left whole that reach some tensors. None: all of these can be cut."""
    return next((f"left whole, since {key!r} {uncut[key]}" for key in keys if key in uncut), None)


def _keys_of(found: Found, uncut: Mapping[str, str]) -> list[str]:
    """Return the tensors that channels reach; where they could not be followed, those of the layers they pass."""
    if isinstance(found.group, ChannelGroup):
        return [slot.key for slot in found.group.slots]
    return [key for key in uncut if key.rpartition(".")[0] in found.layers]


def _place_in(shapes: proof.Shapes) -> Callable[[ChannelGroup], int]:
    """Return a key that sorts groups by the first tensor that their channels are made in."""
    order = {key: index for index, key in enumerate(shapes)}
    return lambda group: min(order[slot.key] for slot in group.slots if slot.role == "weight")


def _with_blocks(twin: nn.Module, forward: Forward, example_input: Any, channels: ChannelGroups) -> ChannelGroups:
    """Return the groups with those of the blocks that can be dropped together with any channels."""
    example = _pytree.tree_map(_informative, example_input)
    found = residual_blocks(twin, forward, example)
    proved, disproved = proof.prove(twin, forward, example, found, channels.shapes, known=channels.groups)
    return replace(channels, groups=(*channels.groups, *proved), unprunable={**channels.unprunable, **disproved})


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy for the trace: double precision on the CPU, random values, all gradients, no user's hooks."""
    try:
        twin = copy.deepcopy(model, submodel.without_graphs(model)).cpu().double()
        for parameter in twin.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        twin.eval()
        proof.randomise(twin, torch.Generator().manual_seed(0))
        for module in twin.modules():
            module._forward_hooks.clear()
            for key, hook in list(module._forward_pre_hooks.items()):
                if not isinstance(hook, WeightNorm | SpectralNorm):  # these compute the layer's weight
                    del module._forward_pre_hooks[key]
    except Exception as error:
        raise UntraceableError(f"the model cannot be copied: {first_line(error)}") from error
    return twin


def _informative(leaf: Any) -> Any:
    """Return floating-point inputs in double precision, noise instead of constants, which prove nothing."""
    if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
        return leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf
    values = leaf.detach().cpu().double()
    if values.numel() and bool((values == values.flatten()[0]).all()):
        values = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return values


def _run(model: nn.Module, forward: Forward, example: Any) -> list[torch.Size]:
    """Return the shapes of the model's outputs."""
    try:
        with torch.no_grad():
            outputs = proof.tensors_of(forward(model, example))
    except Exception as error:
        what = f"the model does not run on the example input in double precision{_location(error, model)}"
        raise UntraceableError(f"{what}: {first_line(error)}") from error
    if not outputs:
        raise UntraceableError("the model's output holds no floating-point tensor; give a `forward` that returns one")
    return [output.shape for output in outputs]


def _find(
    model: nn.Module, forward: Forward, example: Any, max_steps: int, aliases: Mapping[str, Sequence[str]]
) -> list[Found]:
    """Let Torch-Pruning find the groups, in the order of the model's layers."""
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            graph.IGNORED_LAYERS_IN_TRACING = [each for each in model.modules() if isinstance(each, UNREAD)]
            graph.build_dependency(
                model,
                example,
                forward_fn=lambda model, example: proof.tensors_of(forward(model, example)),
                verbose=False,
            )
            _forget_slices_of_rows(graph)
            _forget_single_channels(graph)
            limit_steps(graph, model, max_steps)
            dependencies = [
                group
                for group in graph.get_all_groups(root_module_types=ROOTS)
                if not getattr(group[0].dep.target.module, "inside", False)
            ]
    except Exception as error:
        reason = str(error) if isinstance(error, StepLimitError) else first_line(error)
        raise UntraceableError(f"the model cannot be traced{_location(error, model)}: {reason}") from error
    parts = [module for module in model.modules() if isinstance(module, Part)]
    names = {id(module): name for name, module in model.named_modules()} | {id(part): part.name for part in parts}
    names |= {id(parameter): name for name, parameter in model.named_parameters()}
    order = {name: index for index, name in enumerate(names.values())}
    found = [_to_found(each, graph, names, order, aliases) for each in dependencies]
    return sorted(found, key=lambda each: order[each.name])


def _forget_single_channels(graph: Any) -> None:
    """Let nothing depend on what a layer with one channel makes: a weight of all channels, as attention pools.

    Torch-Pruning takes it for one of the channels that it is multiplied with.
    """
    for module, node in graph.module2node.items():
        if isinstance(module, nn.Linear | layers.Convolution) and graph.get_out_channels(module) == 1:
            if getattr(module, "inside", False):
                continue
            behind = list(node.outputs)
            node.dependencies = [each for each in node.dependencies if each.target not in behind]
            for other in behind:
                other.dependencies = [each for each in other.dependencies if each.target is not node]


def _forget_slices_of_rows(graph: Any) -> None:
    """Let all channels pass slices of the rows of a matrix, which Torch-Pruning takes for slices of channels."""
    for node in graph.module2node.values():
        sizes = getattr(node.grad_fn, "_saved_self_sym_sizes", ())
        if node.type == torch_pruning.ops.OPTYPE.SLICE and len(sizes) == 2 and node.grad_fn._saved_dim == 0:
            node.type = torch_pruning.ops.OPTYPE.ELEMENTWISE
            for dependency in (*node.dependencies, *(each for source in node.inputs for each in source.dependencies)):
                if node in (dependency.source, dependency.target):
                    dependency.index_mapping[0] = None


def _to_found(
    dependencies: Any, graph: Any, names: dict[int, str], order: dict[str, int], aliases: Mapping[str, Sequence[str]]
) -> Found:
    makers, passed, additions = set(), set(), 0
    for item in dependencies:
        node, module = item.dep.target, item.dep.target.module
        if id(module) in names and graph.is_out_channel_pruning_fn(item.dep.handler):
            passed |= {names[id(module)], module.layer} if isinstance(module, Part) else {names[id(module)]}
            if layers.writes_own_channels(module):
                makers.add(names[id(module)])
        if node.grad_fn is not None and node.grad_fn.name().startswith(("AddBackward", "SubBackward")):
            additions += len([each for each in node.inputs if not isinstance(each.module, nn.Parameter)]) > 1
    name = min(makers, key=order.__getitem__)
    try:
        group: ChannelGroup | str = _to_units(dependencies, graph, names).to_group(name, aliases)
    except UnsupportedLayerError as error:
        group = str(error)
    return Found(name, frozenset(passed), len(makers) > 1 and additions > 0, group)


def _to_units(dependencies: Any, graph: Any, names: dict[int, str]) -> UnitTable:
    units = UnitTable(len(dependencies[0].root_idxs))
    for item in dependencies:
        node, module = item.dep.target, item.dep.target.module
        if id(module) not in names:
            continue
        name = names[id(module)]
        if isinstance(module, nn.Parameter):
            layer, _, tensor = name.rpartition(".")
            side = layers.Side(module.shape[node.pruning_dim], ((tensor, node.pruning_dim, "weight"),))
            units.reach(layer, side, item.idxs, item.root_idxs)
        else:
            reads = not graph.is_out_channel_pruning_fn(item.dep.handler)
            layer = module.layer if isinstance(module, Part) else name
            side = module.side(reads) if isinstance(module, Part) else layers.side_of(name, module, reads)
            units.reach(layer, side, item.idxs, item.root_idxs)
    return units


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Return, for every state-dict key, all keys of the same tensor, as of shared layers and tied weights."""
    keys: dict[int, list[str]] = {}
    named = model.state_dict(keep_vars=True)
    for key, tensor in named.items():
        keys.setdefault(id(tensor), []).append(key)
    return {key: keys[id(tensor)] for key, tensor in named.items()}


def _not_reached(model: nn.Module, found: Sequence[Found], heads: Sequence[ChannelGroup]) -> dict[str, str]:
    """Return the layers with parameters that no group passes through, and why they are not cut."""
    reached = {layer for each in found for layer in each.layers}
    reached |= {layer for group in heads for layer in (group.name, *group.layers)}
    whole = (nn.MultiheadAttention, nn.RNNBase, ParametrizationList)
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, whole))
    reasons = {}
    for name, module in model.named_modules():
        own = {f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)}
        passes_on = layers.passes_on_channels(module) or isinstance(module, ParametrizationList)
        if passes_on or not (own or isinstance(module, whole)) or name.startswith(inside):
            continue
        if name not in reached and not own & reached:
            kind, known = type(module).__name__, isinstance(module, ROOTS)
            reason = "the tracer finds none of its channels" if known else f"layers of type {kind} are not cut"
            reasons[name or kind] = reason
    return reasons


def _kept_whole(names: frozenset[str], patterns: Sequence[str]) -> str | None:
    return next((p for p in patterns if any(fnmatch.fnmatchcase(name, p) for name in names)), None)


def _is_output(
    model: nn.Module,
    forward: Forward,
    example: Any,
    normal_shapes: list[torch.Size],
    group: ChannelGroup,
    shapes: proof.Shapes,
    aliases: Mapping[str, Sequence[str]],
) -> bool:
    """Whether dropping units of the group changes the shape of the output."""
    if any(slot.role == "consumer" for slot in group.slots):
        return False
    tied = {key for slot in group.slots if slot.key.startswith(f"{group.name}.") for key in aliases[slot.key]}
    own = [slot for slot in group.slots if slot.key not in tied or slot.key.startswith(f"{group.name}.")]
    group = replace(group, slots=tuple(own))  # not the rows of an embedding with the same weight
    plan = ChannelGroups((group,), shapes, None, {})
    mask = Mask(np.arange(group.size) < group.size - 1)
    try:
        with torch.no_grad():
            outputs = proof.tensors_of(forward(proof.compact(model, plan, submodel.cut_for(plan, mask)), example))
    except Exception:  # anything that a layer raises when channels are missing
        return False
    return [output.shape for output in outputs] != normal_shapes


def _location(error: BaseException, model: nn.Module) -> str:
    """Return the layer of an error: the innermost one in the frames of its traceback."""
    names = {id(module): name for name, module in model.named_modules()}
    location, traceback = "", error.__traceback__
    while traceback is not None:
        for value in traceback.tb_frame.f_locals.values():
            name = names.get(id(value)) or names.get(id(_nearest_layer(value)))
            if name:
                location = f" at layer {name!r}"
        traceback = traceback.tb_next
    return location


def _nearest_layer(value: Any) -> Any:
    """Return the nearest layer before a node of Torch-Pruning's graph."""
    queue, seen = [value] if isinstance(value, torch_pruning.dependency.Node) else [], set()
    while queue:
        node = queue.pop(0)
        if isinstance(node.module, ROOTS):
            return node.module
        seen.add(node)
        queue += [each for each in node.inputs if each not in seen]
    return None
