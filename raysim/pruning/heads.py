"""Find the heads of attention, and what has to shrink with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.pruning import attention, layers, proof
from raysim.pruning.attributes import whole_numbers
from raysim.pruning.groups import Attribute, ChannelGroup, ChannelGroups
from raysim.pruning.layers import UnsupportedLayerError
from raysim.pruning.proof import Forward, Shapes
from raysim.pruning.units import UnitTable

Aliases = Mapping[str, Sequence[str]]

MOST_SIZES = 3
"""Sizes of an attention module that may shrink with its heads, of which all subsets are tried."""


@dataclass(frozen=True, slots=True)
class Call:
    """The one call of a linear layer: what it read and wrote; its output is cut off from what made it."""

    inputs: torch.Tensor
    output: torch.Tensor


@dataclass(frozen=True, slots=True)
class Mixing:
    """A linear layer that reads what attention, or another mixing of channels, makes of other linear layers.

    Attributes:
        reader: Name of the layer, such as the output projection.
        sources: Names of the layers whose outputs are mixed, such as queries, keys and values.
    """

    reader: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of all attention in a model.

    Attributes:
        groups: Those that can be cut.
        mixings: Where other modules than PyTorch's attention mix channels, with heads that can be cut or without.
        unprunable: Layers whose heads are left whole, with the reason.
    """

    groups: list[ChannelGroup]
    mixings: list[Mixing]
    unprunable: dict[str, str]


def find_heads(
    model: nn.Module,
    forward: Forward,
    example: Any,
    shapes: Shapes,
    aliases: Aliases,
    why_whole: Callable[[ChannelGroup], str | None] = lambda group: None,
) -> Heads:
    """Find the heads of all attention in a model, and prove them in numbers.

    A unit is a head with its queries, keys and values, and the columns of the output projection that read it; where
    several heads share keys and values, it is those heads, but one head where all share the same. Heads of PyTorch's
    attention are known. In other modules they are what linear layers and the one behind them fall into: channels
    that the same channels depend on. Whole numbers of the module, such as its number of heads, shrink with them
    where the proof needs it.

    Args:
        model: The model, in double precision and eval mode, its parameters randomised.
        forward: Applies it to the example.
        example: A batch of inputs.
        shapes: Shape of every state-dict entry of the model.
        aliases: All keys of each tensor, by each of its keys.
        why_whole: Returns why heads are left whole whatever their proof, which is then left out: it takes a second
            for each layer of a large model. None: they are proved.
    """
    known, whole = [], {}
    for name, module in model.named_modules():
        if attention.is_attention(module):
            try:
                group = _heads_of(name, module, aliases)
                if reason := why_whole(group):
                    whole[group.name] = reason
                else:
                    known.append(group)
            except UnsupportedLayerError as error:
                whole[name or type(module).__name__] = str(error)
    proved, disproved = proof.prove(model, forward, example, known, shapes)
    whole |= {name: f"its heads cannot be cut: {reason}" for name, reason in disproved.items()}
    mixings = []
    for mixing, group in _found_heads(model, forward, example, aliases):
        mixings.append(mixing)
        if reason := why_whole(group):
            whole[group.name] = reason
            continue
        fault = None
        for attributes in _choices(model, _modules_around(model, mixing.sources), group, shapes):
            tried = replace(group, attributes=attributes)
            fault = proof.fault_of(model, forward, example, ChannelGroups((*proved, tried), shapes, None, {}))
            if fault is None:
                proved.append(tried)
                break
        else:
            whole[group.name] = f"its heads cannot be cut: {fault}"
    return Heads(proved, mixings, whole)


def _heads_of(name: str, module: Any, aliases: Aliases) -> ChannelGroup:
    """Return the heads of PyTorch's attention as a group."""
    if module.num_heads < 2:
        raise UnsupportedLayerError("it has one head only")
    total, prefix = attention.num_channels(module), f"{name}." if name else ""
    heads = np.arange(total).reshape(module.num_heads, -1)
    thrice = np.concatenate([heads, heads + total, heads + 2 * total], axis=1)
    units = UnitTable(module.num_heads)
    own = [("in_proj_weight", 0, thrice), *((each, 0, heads) for each in attention.PROJECTIONS)]
    for tensor, dim, found in (*own, ("in_proj_bias", 0, thrice), ("bias_k", 2, heads), ("bias_v", 2, heads)):
        if getattr(module, tensor) is not None:
            units.add(f"{prefix}{tensor}", dim, found, "weight")
    units.add(f"{prefix}out_proj.weight", 1, heads, "consumer")
    return units.to_group(name or type(module).__name__, aliases)


def _found_heads(
    model: nn.Module, forward: Forward, example: Any, aliases: Aliases
) -> Iterator[tuple[Mixing, ChannelGroup]]:
    """Find heads in modules of any type: what the inputs of a linear layer make of the outputs of others."""
    if sum(layers.is_linear(module) for module in model.modules()) < 2:
        return
    try:
        with _recorded(model) as calls, torch.enable_grad():
            forward(model, example)
    except (
        Exception
    ):  # whatever a forward raises on tensors with gradients: the tracer meets it again, and reports it
        return
    for reader, call in calls.items():
        sources = _sources(call, calls)
        outputs = [calls[name].output for name in sources]
        if not sources or not _is_mixed(_rows(call, 0, outputs)):
            continue
        parts = _parts(call, outputs)
        own = sources
        if len(parts) < 2:  # perhaps all heads share keys and values, which stay whole
            own = [name for name in sources if calls[name].output.shape[-1] == call.inputs.shape[-1]]
            parts = _parts(call, [calls[name].output for name in own]) if 0 < len(own) < len(sources) else []
        group = _group_of(model, reader, own, parts, aliases) if len(parts) > 1 else None
        if group is not None:
            yield Mixing(reader, tuple(sources)), group


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, Call]]:
    """Record the linear layers that are called once, each cut off from the layers before it."""
    calls: dict[str, Call] = {}
    twice: set[str] = set()

    def recorder(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if name in calls or len(args) != 1 or not isinstance(output, torch.Tensor):
                twice.add(name)
                return output
            cut_off = output.detach().requires_grad_()
            calls[name] = Call(args[0], cut_off)
            return cut_off.clone()  # what follows may change it in place

        return record

    handles = [
        module.register_forward_hook(recorder(name))
        for name, module in model.named_modules()
        if layers.is_linear(module)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for name in twice:
            calls.pop(name, None)


def _gradients(total: torch.Tensor, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    if not total.requires_grad:
        return [None] * len(outputs)
    return list(torch.autograd.grad(total, outputs, retain_graph=True, allow_unused=True))


def _weighted(values: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (values * torch.rand(values.shape, generator=generator, dtype=values.dtype)).sum()


def _sources(call: Call, calls: Mapping[str, Call]) -> list[str]:
    """Return the linear layers on which the inputs of another depend, with no layer between."""
    gradients = _gradients(_weighted(call.inputs), [each.output for each in calls.values()])
    return [
        name for name, found in zip(calls, gradients, strict=True) if found is not None and bool((found != 0).any())
    ]


def _parts(call: Call, sources: Sequence[torch.Tensor]) -> list[tuple[NDArray[np.int64], list[NDArray[np.int64]]]]:
    """Return the parts into which channels fall that depend on each other: inputs, and outputs of each source."""
    width = call.inputs.shape[-1]
    depends = np.stack([np.concatenate(_rows(call, column, sources)) for column in range(width)])
    label = np.arange(width)
    lowest = np.zeros(0)
    while True:
        before = label.copy()
        lowest = np.where(depends, label[:, None], width).min(axis=0)
        label = np.minimum(label, np.where(depends, lowest[None], width).min(axis=1))
        if np.array_equal(before, label):
            break
    ends = np.cumsum([0, *(each.shape[-1] for each in sources)])
    return [
        (
            np.flatnonzero(label == part),
            [np.flatnonzero(lowest[start:end] == part) for start, end in pairwise(ends)],
        )
        for part in np.unique(label)
    ]


def _is_mixed(rows: Sequence[NDArray[np.bool_]]) -> bool:
    """Whether an input depends on neither one output of each source, as in an MLP, nor on all, as behind a norm."""
    return any(each.sum() > 1 for each in rows) and not all(each.all() for each in rows)


def _rows(call: Call, column: int, sources: Sequence[torch.Tensor]) -> list[NDArray[np.bool_]]:
    """Return on which outputs of each source one input channel depends."""
    gradients = _gradients(_weighted(call.inputs[..., column]), sources)
    return [
        np.zeros(source.shape[-1], dtype=np.bool_)
        if found is None
        else (found != 0).reshape(-1, source.shape[-1]).any(0).numpy()
        for source, found in zip(sources, gradients, strict=True)
    ]


def _group_of(
    model: nn.Module,
    reader: str,
    sources: Sequence[str],
    parts: Sequence[tuple[NDArray[np.int64], list[NDArray[np.int64]]]],
    aliases: Aliases,
) -> ChannelGroup | None:
    """Return the group of some parts; None where they are uneven, or do not make up the whole of the layers."""
    units = UnitTable(len(parts))
    found = [np.stack(rows) if len({len(each) for each in rows}) == 1 else None for rows in _by_layer(parts)]
    for name, indices, reads in zip([reader, *sources], found, [True] + [False] * len(sources), strict=True):
        layer: Any = model.get_submodule(name)
        dim = int(reads) ^ int(layers.is_transposed(layer))
        if indices is None or indices.size != layer.weight.shape[dim] or f"{name}.weight" not in aliases:
            return None
        units.add(f"{name}.weight", dim, indices, "consumer" if reads else "weight")
        if not reads and layer.bias is not None:
            units.add(f"{name}.bias", 0, indices, "weight")
    try:
        return units.to_group(sources[0], aliases)
    except UnsupportedLayerError:
        return None


def _by_layer(
    parts: Sequence[tuple[NDArray[np.int64], list[NDArray[np.int64]]]],
) -> list[list[NDArray[np.int64]]]:
    """Return the channels of each part, first those of the reader, then those of each source."""
    return [list(rows) for rows in zip(*((columns, *rows) for columns, rows in parts), strict=True)]


def _modules_around(model: nn.Module, sources: Sequence[str]) -> list[str]:
    """Return the module that holds all of some layers, and what it holds that is no layer itself."""
    paths = [name.split(".")[:-1] for name in sources]
    shared = []
    for each in zip(*paths, strict=False):
        if len(set(each)) > 1:
            break
        shared.append(each[0])
    top = ".".join(shared)
    return [
        f"{top}.{name}".strip(".")
        for name, each in model.get_submodule(top).named_modules()
        if not layers.is_linear(each)
    ]


def _choices(
    model: nn.Module, modules: Sequence[str], group: ChannelGroup, shapes: Shapes
) -> Iterator[tuple[Attribute, ...]]:
    """Yield the attributes that may have to shrink with a group, the likeliest first.

    Numbers of heads always shrink first, alone; then with sizes that are those of the tensors; then none does.
    """
    key, dim = group.slots[0].key, group.slots[0].dim
    widths = {shapes[slot.key][slot.dim] for slot in group.slots}
    counts, sizes = [], []
    for module, name, value in whole_numbers(model, modules):
        attribute = Attribute(module, name, key, dim)
        is_size = any(word in name for word in ("dim", "size"))
        if not is_size and (value == group.size or ("head" in name and value < min(widths))):
            counts += [attribute] if value % group.size == 0 else []
        elif value in widths:
            sizes.append(attribute)
    most = len(sizes) if len(sizes) <= MOST_SIZES else 1
    for count in range(most + 1):
        for chosen in combinations(sizes, count):
            yield (*counts, *chosen)
    if most < len(sizes):
        yield (*counts, *sizes)
    if counts:
        yield ()
