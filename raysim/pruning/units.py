"""Turn the channel indices of a trace into the units of a group, and merge inseparable units."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raysim.pruning.groups import ChannelGroup, Role, Slot
from raysim.pruning.layers import Side, UnsupportedLayerError

Indices = NDArray[np.int64]


@dataclass(slots=True)
class UnitTable:
    """The units of a group while it is being built.

    Attributes:
        size: Number of units before merging.
        slots: For every tensor and dimension, the indices of each unit, `(size, width)`, and the role.
        together: Layers that divide their channels: name, each unit's channels `(size, width)`, number of channels,
            number of parts.
    """

    size: int
    slots: dict[tuple[str, int], tuple[Indices, Role]] = field(default_factory=dict)
    together: list[tuple[str, Indices, int, int]] = field(default_factory=list)

    def reach(self, layer: str, side: Side, indices: Sequence[int], units: Sequence[int]) -> None:
        """Record that channels `indices` of a layer belong to `units`, pairwise.

        Raises:
            UnsupportedLayerError: If units differ in their number of channels, or the layer has fewer channels.
        """
        by_unit = self._by_unit(layer, indices, units)
        if by_unit.max() >= side.channels:
            raise UnsupportedLayerError(f"its channels do not fit those of layer {layer!r}")
        if side.together > 1:
            self.together.append((layer, by_unit, side.channels, side.together))
        within = by_unit % (side.channels // side.together) if side.wraps else by_unit
        gates = np.arange(side.repeats) * side.channels
        repeated = (by_unit[:, None, :] + gates[:, None]).reshape(len(by_unit), -1)
        for tensor, dim, role in side.tensors:
            found = repeated if side.repeats > 1 and role == "weight" else within
            self.add(f"{layer}.{tensor}" if layer else tensor, dim, found, role)

    def add(self, key: str, dim: int, indices: Indices, role: Role) -> None:
        """Add a slot, or join it with the one that the tensor already has."""
        if (key, dim) in self.slots:
            before, role = self.slots[key, dim]
            indices = np.concatenate([before, indices], axis=1)
        self.slots[key, dim] = indices, role

    def _by_unit(self, layer: str, indices: Sequence[int], units: Sequence[int]) -> Indices:
        rows: list[list[int]] = [[] for _ in range(self.size)]
        for index, unit in zip(indices, units, strict=True):
            if unit is None:
                raise UnsupportedLayerError(f"its channels cannot be followed to layer {layer!r}")
            rows[unit].append(int(index))
        if len({len(row) for row in rows}) != 1:
            raise UnsupportedLayerError(f"its channels reach layer {layer!r} unevenly")
        return np.array(rows, dtype=np.int64)

    def to_group(self, name: str, aliases: Mapping[str, Sequence[str]]) -> ChannelGroup:
        """Return the group with inseparable units merged into one.

        Args:
            name: The group's name.
            aliases: All keys of each tensor, by each of its keys.

        Raises:
            UnsupportedLayerError: If the units cannot be merged so that every layer is cut evenly, or a layer
                computes a tensor from others (weight norm and other parametrizations).
        """
        merged = self._merged()
        if len(merged) < 2:
            raise UnsupportedLayerError("its channels can only be kept or dropped all together")
        slots = []
        for (key, dim), (indices, role) in self.slots.items():
            if key not in aliases:
                layer, _, tensor = key.rpartition(".")
                raise UnsupportedLayerError(f"layer {layer!r} computes its {tensor} from other tensors")
            rows = [np.unique(indices[units]) for units in merged]
            if len({len(row) for row in rows}) != 1:
                raise UnsupportedLayerError(f"its channels reach {key!r} unevenly")
            found = np.stack(rows)
            others = [other for other in aliases[key] if (other, dim) not in self.slots]
            slots += [Slot(each, dim, found, role) for each in (key, *others)]
        return ChannelGroup(name, len(merged), tuple(slots))

    def _merged(self) -> list[Indices]:
        """Return which units make up each unit of the group, in the order of their first members."""
        label = np.arange(self.size)
        for layer, channels, count, parts in self.together:
            positions = channels % (count // parts)
            self._check_whole(layer, channels, positions, parts)
        changed = bool(self.together)
        while changed:
            before = label.copy()
            for _, channels, count, parts in self.together:
                positions = channels % (count // parts)
                lowest = np.full(count // parts, self.size)
                np.minimum.at(lowest, positions, label[:, None])
                label = np.minimum(label, lowest[positions].min(axis=1))
            changed = not np.array_equal(before, label)
        members: dict[int, list[int]] = defaultdict(list)
        for unit, first in enumerate(label.tolist()):
            members[first].append(unit)
        return [np.array(units) for _, units in sorted(members.items())]

    @staticmethod
    def _check_whole(layer: str, channels: Indices, positions: Indices, parts: int) -> None:
        """Check that the group holds each of its positions in all parts of the layer."""
        distinct = np.unique(np.stack([channels.ravel(), positions.ravel()]), axis=1)
        if (np.bincount(distinct[1])[np.unique(distinct[1])] != parts).any():
            raise UnsupportedLayerError(f"layer {layer!r} shares its groups of channels with other layers' channels")
