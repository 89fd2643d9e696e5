"""Find the blocks of a model that compute their input when all their entries are zero: those beside a shortcut."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from raysim.core.inputs import Inputs, each
from raysim.pruning.groups import ChannelGroup, Slot
from raysim.pruning.proof import TOLERANCE, Forward, call, randomise

Call = tuple[torch.Tensor, torch.Tensor]
"""Input and output of a module."""


def residual_blocks(model: nn.Module, forward: Forward, example: Any) -> list[ChannelGroup]:
    """Return the innermost modules that compute their input when all their entries are zero, in the model's order.

    Such a block adds to an identity shortcut: `x + F(x)`, or `relu(x + F(x))` where x is positive. Blocks that are
    called more than once, that share a tensor with another module, or of which a parameter is a single number, which
    cannot be cut, are left out.

    Args:
        model: The model, in double precision and eval mode, its parameters randomised.
        forward: Applies it to the example.
        example: A batch of inputs.
    """
    found: list[str] = []
    with recorded_calls(model) as calls, torch.no_grad():
        forward(model, example)
    for name, module in reversed(list(model.named_modules())):  # children before their parents
        holds_another = any(other.startswith(f"{name}.") for other in found)
        if name and not holds_another and _is_skippable(model, name, module, calls.get(name, [])):
            found.append(name)
    return [_group_of(name, model.get_submodule(name)) for name in reversed(found)]


@contextmanager
def recorded_calls(model: nn.Module, leaves: bool = False) -> Iterator[dict[str, list[Call]]]:
    """Record the calls of modules from one tensor to another, by name; of those without children only if `leaves`."""
    calls: dict[str, list[Call]] = {}

    def recorder(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            fits = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
            fits = fits and isinstance(output, torch.Tensor)
            calls.setdefault(name, []).append((args[0].clone(), output.clone()) if fits else (torch.empty(0),) * 2)

        return record

    hooked = [(name, module) for name, module in model.named_modules() if leaves or list(module.children())]
    handles = [module.register_forward_hook(recorder(name), with_kwargs=True) for name, module in hooked]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def branch_ends(model: nn.Module, example: Inputs) -> list[str]:
    """Return, for each block beside an identity shortcut, the layer whose output is added to the block's input.

    Blocks of which no layer's output is, such as those with two branches, are left out.

    Args:
        model: Any model; it is left unchanged.
        example: A batch of inputs.
    """
    example = each(_noise, example)
    try:
        return _branch_ends(copy.deepcopy(model).double().eval(), call, example)
    except Exception:  # whatever a layer raises in double precision: the model cannot be traced either
        return []


def _noise(inputs: torch.Tensor) -> torch.Tensor:
    """Return random numbers instead of floats; whole numbers, such as token ids, stay as they are."""
    if not inputs.is_floating_point():
        return inputs
    return torch.randn(inputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _branch_ends(twin: nn.Module, forward: Forward, example: Inputs) -> list[str]:
    randomise(twin, torch.Generator().manual_seed(0))
    with recorded_calls(twin, leaves=True) as calls, torch.no_grad():
        forward(twin, each(torch.clone, example))
    found = []
    for block in residual_blocks(twin, forward, each(torch.clone, example)):
        ((inputs, output),) = calls[block.name]
        inside = [name for name in calls if name.startswith(f"{block.name}.") and len(calls[name]) == 1]
        ends = [name for name in inside if _is_branch(inputs, calls[name][0][1], output)]
        weighted = [name for name in ends if list(twin.get_submodule(name).parameters(recurse=False))]
        found += weighted[-1:]
    return found


def _is_branch(inputs: torch.Tensor, branch: torch.Tensor, output: torch.Tensor) -> bool:
    if branch.shape != inputs.shape:
        return False
    total = inputs + branch
    return any(torch.allclose(output, each, rtol=TOLERANCE) for each in (total, total.relu()))


def _is_skippable(model: nn.Module, name: str, module: nn.Module, calls: list[Call]) -> bool:
    own = list(module.parameters())
    if len(calls) != 1 or not own or any(each.dim() == 0 for each in own):
        return False
    if calls[0][0].numel() == 0 or calls[0][0].shape != calls[0][1].shape:
        return False
    others = [
        tensor for key, tensor in model.named_parameters(remove_duplicate=False) if not key.startswith(f"{name}.")
    ]
    if {id(tensor) for tensor in own} & {id(tensor) for tensor in others}:
        return False
    zeroed, (inputs, output) = copy.deepcopy(module), calls[0]
    for tensor in zeroed.state_dict().values():
        tensor.zero_()
    try:
        with torch.no_grad():
            found = call(zeroed, inputs.clone())
    except Exception:  # whatever a layer raises on zeros
        return False
    scale = float(inputs.abs().max().clamp_min(1e-30))
    passes_on, changes = ((each - inputs).abs().max() / scale for each in (found, output))
    return bool(passes_on < TOLERANCE < changes)


def _group_of(name: str, block: nn.Module) -> ChannelGroup:
    """Return the group of a block: all its tensors along their first dimension, in one unit."""
    parameters = {key for key, _ in block.named_parameters(remove_duplicate=False)}
    slots = tuple(
        Slot(f"{name}.{key}", 0, np.arange(len(tensor))[None], "weight" if key in parameters else "statistic")
        for key, tensor in block.state_dict().items()
        if tensor.dim()
    )
    return ChannelGroup(name, 1, slots, "block")
