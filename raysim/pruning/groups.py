"""Coupled channel groups of a model as index arrays in the full model's coordinates, to JSON and back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Role = Literal["weight", "statistic", "consumer"]
"""Role of a slot for its unit: own filter or affine pair, running statistics, or weights that read it."""
Kind = Literal["channel", "block"]
"""Kind of a group's units: channels, of which at least one stays; or a whole block of layers beside a shortcut."""
FORMAT = 3
"""Number of the JSON format; files without a number hold channels only, those of format 2 no attributes."""


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Indices of a group's units in one tensor: `indices[unit]` along `dim`, `(size, width)`."""

    key: str
    dim: int
    indices: NDArray[np.int64]
    role: Role


@dataclass(frozen=True, slots=True)
class Attribute:
    """A whole number of a module that is proportional to a dimension of a tensor, such as its number of heads."""

    module: str
    name: str
    key: str
    dim: int


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Units that are kept or dropped one by one, each with all its indices; named after the first layer or the block.

    A unit is a channel, or several that only go together, as those of a head of attention; or the one unit of a
    block: without it, the block passes on its input. `attributes` shrink with the number of units.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    kind: Kind = "channel"
    attributes: tuple[Attribute, ...] = ()

    @property
    def layers(self) -> list[str]:
        """Names of the layers, and of the bare parameters, that the channels pass through."""
        own = [slot.key for slot in self.slots if slot.role == "weight"]
        return list(dict.fromkeys(key.removesuffix(".weight").removesuffix(".bias") for key in own))


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Dimensions of tensors that are cut alike: their size, the mask's units with their indices, and their list."""

    size: int
    slots: list[tuple[slice, NDArray[np.int64]]]
    dims: list[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The plan by which a model is cut and reconstructed, as plain data.

    Attributes:
        groups: The prunable channel groups, in the order of the model's layers.
        shapes: Shape of every state-dict entry of the full model.
        outputs: The rows of the classifier, one unit per class; never pruned.
        unprunable: Layers that are left whole, with the reason.
    """

    groups: tuple[ChannelGroup, ...]
    shapes: Mapping[str, tuple[int, ...]]
    outputs: ChannelGroup | None
    unprunable: Mapping[str, str]

    @cached_property
    def num_units(self) -> int:
        """Number of units of all groups together: the length of a mask."""
        return sum(group.size for group in self.groups)

    @cached_property
    def units(self) -> dict[str, slice]:
        """Slice of each group's units in a mask or in a vector of scores."""
        ends = np.cumsum([0] + [group.size for group in self.groups])
        return {
            group.name: slice(int(start), int(end))
            for group, start, end in zip(self.groups, ends[:-1], ends[1:], strict=True)
        }

    @cached_property
    def axes(self) -> dict[str, dict[int, list[tuple[slice, NDArray[np.int64]]]]]:
        """For every state-dict key and cut dimension, the mask's units and their indices."""
        axes: dict[str, dict[int, list[tuple[slice, NDArray[np.int64]]]]] = {}
        for group, slot in self.slots():
            dims = axes.setdefault(slot.key, {})
            dims.setdefault(slot.dim, []).append((self.units[group.name], slot.indices))
        return axes

    @cached_property
    def patterns(self) -> list["Pattern"]:
        """The cut dimensions, grouped if they are cut alike: a channel is searched once, not once per tensor."""
        alike: dict[object, Pattern] = {}
        for key, dims in self.axes.items():
            for dim, slots in dims.items():
                size = self.shapes[key][dim]
                content = (size, *((units.start, indices.tobytes()) for units, indices in slots))
                alike.setdefault(content, Pattern(size, slots, [])).dims.append((key, dim))
        return list(alike.values())

    @cached_property
    def attributes(self) -> tuple[Attribute, ...]:
        """Attributes of modules that shrink with the groups."""
        return tuple(attribute for group in self.groups for attribute in group.attributes)

    def emptied(self, kept: NDArray[np.bool_]) -> list[str]:
        """Return the channel groups of which a mask keeps no unit; blocks may be dropped.

        Args:
            kept: Whether each unit is kept, `(num_units,)`.
        """
        channels = (group.name for group in self.groups if group.kind == "channel")
        return [name for name in channels if not kept[self.units[name]].any()]

    def slots(self) -> Iterator[tuple[ChannelGroup, Slot]]:
        """Iterate over all slots of all prunable groups."""
        for group in self.groups:
            for slot in group.slots:
                yield group, slot


def to_json(plan: ChannelGroups) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {
        "format": FORMAT,
        "groups": [_group_to_json(group) for group in plan.groups],
        "shapes": {key: list(shape) for key, shape in plan.shapes.items()},
        "outputs": None if plan.outputs is None else _group_to_json(plan.outputs),
        "unprunable": dict(plan.unprunable),
    }


def from_json(content: dict[str, Any]) -> ChannelGroups:
    """Build the plan from the result of `to_json`.

    Raises:
        ValueError: If it is of a later format.
    """
    outputs = content["outputs"]
    if content.get("format", 1) not in range(1, FORMAT + 1):
        raise ValueError(f"format={content['format']!r} is not known; allowed: 1 to {FORMAT}")
    return ChannelGroups(
        groups=tuple(_group_from_json(group) for group in content["groups"]),
        shapes={key: tuple(shape) for key, shape in content["shapes"].items()},
        outputs=None if outputs is None else _group_from_json(outputs),
        unprunable=content["unprunable"],
    )


def _group_to_json(group: ChannelGroup) -> dict[str, Any]:
    slots = [
        {"key": slot.key, "dim": slot.dim, "role": slot.role, "indices": slot.indices.tolist()}
        for slot in group.slots
    ]
    attributes = [[each.module, each.name, each.key, each.dim] for each in group.attributes]
    return {"name": group.name, "size": group.size, "kind": group.kind, "slots": slots, "attributes": attributes}


def _group_from_json(content: dict[str, Any]) -> ChannelGroup:
    slots = tuple(
        Slot(slot["key"], slot["dim"], np.array(slot["indices"], dtype=np.int64), slot["role"])
        for slot in content["slots"]
    )
    kind = content.get("kind", "channel")
    if kind not in get_args(Kind):
        raise ValueError(
            f"kind={kind!r} of group {content['name']!r} is not known; allowed: {', '.join(get_args(Kind))}"
        )
    attributes = tuple(Attribute(*each) for each in content.get("attributes", ()))
    return ChannelGroup(content["name"], content["size"], slots, kind, attributes)
