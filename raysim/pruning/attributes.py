"""Find the whole numbers in a model's modules that have to shrink with a group of channels."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from raysim.pruning import proof
from raysim.pruning.groups import Attribute, ChannelGroup, ChannelGroups
from raysim.pruning.proof import Forward, Shapes


def whole_numbers(model: nn.Module, modules: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Iterate over the positive whole numbers that modules hold: module, name and value."""
    for module in modules:
        for name, value in vars(model.get_submodule(module)).items():
            if type(value) is int and value > 0:
                yield module, name, value


def with_sizes(
    model: nn.Module,
    forward: Forward,
    example: Any,
    groups: Sequence[ChannelGroup],
    shapes: Shapes,
    known: Sequence[ChannelGroup],
) -> list[ChannelGroup]:
    """Return those of some groups that can be cut if numbers equal to their size shrink with them.

    A model that reshapes by a stored width, as in `outputs.view(-1, self.hidden_size)`, needs that.

    Args:
        model: The model, in double precision and eval mode, its parameters randomised.
        forward: Applies it to the example.
        example: A batch of inputs.
        groups: Groups that cannot be cut as they are.
        shapes: Shape of every state-dict entry of the model.
        known: Groups proved before, together with which they are to be cut.
    """
    own = [name for name, module in model.named_modules() if _may_reshape(module)]
    proved: list[ChannelGroup] = []
    for group in groups:
        whole = [slot for slot in group.slots if slot.indices.size == shapes[slot.key][slot.dim]]
        whole.sort(key=lambda slot: not slot.key.startswith(f"{group.name}."))  # others may be in a dropped block
        found = [(module, name) for module, name, value in whole_numbers(model, own) if value == group.size]
        attributes = tuple(Attribute(*each, whole[0].key, whole[0].dim) for each in found) if whole else ()
        alone = [(each,) for each in attributes] if len(attributes) > 1 else []
        for chosen in [attributes, *alone] if attributes else []:
            tried = replace(group, attributes=chosen)
            several = ChannelGroups((*known, *proved, tried), shapes, None, {})
            if proof.fault_of(model, forward, example, several) is None:
                proved.append(tried)
                break
    return proved


def _may_reshape(module: nn.Module) -> bool:
    """Whether a module's numbers may stand for widths: not those of PyTorch's layers, which follow their tensors."""
    return isinstance(module, nn.Transformer) or not type(module).__module__.startswith("torch.nn.")
