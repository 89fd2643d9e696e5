"""Count what the submodels of masks cost, once per width."""

from collections.abc import Sequence
from functools import cached_property
from math import prod

import numpy as np
from torch import nn

from raysim.models.cost import ModelCost, count, weight_flops
from raysim.pruning import elements, submodel
from raysim.pruning.groups import ChannelGroups
from raysim.pruning.masks import Mask


class CostTable:
    """Costs of a model's submodels, by the widths of their channel groups."""

    def __init__(self, model: nn.Module, plan: ChannelGroups, input_shape: Sequence[int]) -> None:
        self._model, self._plan, self._input_shape = model, plan, tuple(input_shape)
        self._by_width: dict[tuple[int, ...], ModelCost] = {}
        self._pruned: dict[int, tuple[Mask, dict[str, int]]] = {}

    @property
    def dense(self) -> ModelCost:
        """Costs of the full model."""
        return self.of(Mask(np.ones(self._plan.num_units, dtype=np.bool_)))

    def of(self, mask: Mask) -> ModelCost:
        """Return the costs of the submodel a mask leaves."""
        width = submodel.widths(self._plan, mask)
        if width not in self._by_width:
            shapes = self._compact_shapes(mask)
            small = submodel.skeleton(self._model, shapes, device="meta")
            self._by_width[width] = count(small, self._input_shape)
        return self._by_width[width]

    @cached_property
    def weight_flops(self) -> dict[str, int]:
        """Training FLOPs per example behind each weight of the convolutions and linear layers, by key."""
        return weight_flops(submodel.skeleton(self._model, self._plan.shapes, device="meta"), self._input_shape)

    def pruned_elements(self, mask: Mask) -> dict[str, int]:
        """Return how many entries of each tensor a mask of single entries removes from its submodel."""
        if not mask.elements:
            return {}
        if id(mask) not in self._pruned:
            cut = submodel.cut_for(self._plan, mask)
            kept = elements.of_submodel(mask, self._plan.shapes, cut)
            self._pruned = {id(mask): (mask, {key: int((~held).sum()) for key, held in kept.items()})}
        return self._pruned[id(mask)][1]

    def pruned_bytes(self, mask: Mask) -> int:
        """Return the bytes of the entries that a mask of single entries removes, in their own dtypes."""
        return sum(count * self.entry_bytes[key] for key, count in self.pruned_elements(mask).items())

    @cached_property
    def entry_bytes(self) -> dict[str, int]:
        """Bytes of one entry of each tensor, by key."""
        return {key: tensor.element_size() for key, tensor in self._model.state_dict().items()}

    def masked_entries(self, mask: Mask) -> int:
        """Return the number of entries in the submodel's tensors that a mask of single entries covers."""
        shapes = self._compact_shapes(mask)
        return sum(prod(shapes[key]) for key in mask.elements)

    def sent_entries(self, mask: Mask) -> dict[str, int]:
        """Return the number of entries of each parameter that travel with an update; a shared one counts once."""
        shapes, pruned = self._compact_shapes(mask), self.pruned_elements(mask)
        floating = [name for name, value in self._model.named_parameters() if value.is_floating_point()]
        return {name: prod(shapes[name]) - pruned.get(name, 0) for name in floating}

    def buffer_bytes(self, mask: Mask) -> int:
        """Return the bytes of the submodel's buffers, those that travel."""
        shapes = self._compact_shapes(mask)
        floating = [key for key, value in self._model.named_buffers() if value.is_floating_point() and key in shapes]
        return sum(prod(shapes[key]) * self.entry_bytes[key] for key in floating)

    def _compact_shapes(self, mask: Mask) -> dict[str, tuple[int, ...]]:
        return submodel.compact_shapes(self._plan, submodel.cut_for(self._plan, mask))

    def pruning_ratio(self, mask: Mask) -> float:
        """Return the share of the full model's parameters that the mask removes."""
        kept = self.of(mask).parameters - sum(self.pruned_elements(mask).values())
        return 1 - kept / self.dense.parameters
