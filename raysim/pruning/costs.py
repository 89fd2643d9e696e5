"""Count what the submodels of masks cost, once per width."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod
from typing import TypeVar

import torch
from torch import nn

from raysim.core import seeding
from raysim.core.inputs import Inputs, each
from raysim.core.tensors import frozen_keys
from raysim.models.cost import ModelCost, count, forward_flops, weight_flops
from raysim.pruning import elements, submodel
from raysim.pruning.gradients import without_gradient
from raysim.pruning.groups import ChannelGroups
from raysim.pruning.masks import Mask

ALL_FROZEN = 1.0
"""`CostTable.frozen_part` of a mask that keeps all frozen entries."""

Counts = TypeVar("Counts")
Count = Callable[[nn.Module, Sequence[int], Inputs | None], Counts]


class CostTable:
    """Costs of a model's submodels, by the widths of their channel groups.

    They are counted on the meta device, without memory and without values; where a model's forward needs values (it
    calls `item`, its shapes depend on data, it holds tensors that are no buffers), in main memory.

    Args:
        model: The full model.
        plan: Its channel groups.
        input_shape: Shape of one input.
        example: Two inputs, for models whose forward needs values, or that read whole numbers. None: zeros.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: ChannelGroups,
        input_shape: Sequence[int],
        example: Inputs | None = None,
    ) -> None:
        self._model, self._plan, self._input_shape = model, plan, tuple(input_shape)
        self._example, self._needs_values = example, False
        self._by_width: dict[tuple[int, ...], ModelCost] = {}
        self._forward_by_width: dict[tuple[int, ...], int] = {}
        self._pruned: dict[int, tuple[Mask, dict[str, int]]] = {}

    @property
    def dense(self) -> ModelCost:
        """Costs of the full model."""
        return self.of(Mask.whole(self._plan))

    def of(self, mask: Mask) -> ModelCost:
        """Return the costs of the submodel a mask leaves."""
        return self._counted_once(mask, count, self._by_width)

    @cached_property
    def weight_flops(self) -> dict[str, float]:
        """Training FLOPs per example behind each entry of the weights of two or more dimensions, by key."""
        return self._counted(Mask.whole(self._plan), weight_flops)

    @cached_property
    def forward_flops(self) -> int:
        """FLOPs per example of the full model's forward pass."""
        return self.forward_flops_of(Mask.whole(self._plan))

    def forward_flops_of(self, mask: Mask) -> int:
        """Return the FLOPs per example of the forward pass of the submodel a mask leaves."""
        return self._counted_once(mask, forward_flops, self._forward_by_width)

    @cached_property
    def without_gradient(self) -> frozenset[str]:
        """Names of the parameters whose gradient is zero, whatever loss is minimised."""
        return without_gradient(self._model, self._input_shape, self._example)

    def _counted_once(self, mask: Mask, count: Count[Counts], by_width: dict[tuple[int, ...], Counts]) -> Counts:
        """Count, unless it was done for a mask of the same widths before."""
        width = submodel.widths(self._plan, mask)
        if width not in by_width:
            by_width[width] = self._counted(mask, count)
        return by_width[width]

    def _counted(self, mask: Mask, count: Count[Counts]) -> Counts:
        """Count on the meta device; once that has failed, in main memory with the submodel's values."""
        if not self._needs_values:
            small = submodel.skeleton(self._model, self._compact_shapes(mask), "meta", self._plan.attributes)
            try:
                return count(small, self._input_shape, self._zeros())
            except (RuntimeError, TypeError, ValueError, IndexError):
                self._needs_values = True  # what the model itself raises, it raises below as well
        small = submodel.extract(self._model, self._plan, mask)
        with seeding.torch_seeded(0, "count costs"):
            return count(
                small, self._input_shape, None if self._example is None else each(torch.clone, self._example)
            )

    def _zeros(self) -> Inputs | None:
        """Return zeros of the example's form on the meta device. None: zeros of the input shape will do."""
        if self._example is None:
            return None
        return each(lambda tensor: torch.zeros_like(tensor, device="meta"), self._example)

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

    def frozen_bytes(self, mask: Mask) -> int:
        """Return the bytes of the submodel's frozen entries: they do not travel up, and travel down once."""
        pruned = self.pruned_elements(mask)
        return self.of(mask).frozen_bytes - sum(
            count * self.entry_bytes[key] for key, count in pruned.items() if key in self._frozen
        )

    def frozen_part(self, mask: Mask) -> float:
        """Return a number for the frozen entries that a mask keeps: `ALL_FROZEN`, or a digest greater than it."""
        frozen, cut = sorted(self._frozen), submodel.cut_for(self._plan, mask)
        kept = [(key, dim, indices.numpy()) for key in frozen for dim, indices in sorted(cut.get(key, {}).items())]
        kept += [(key, -1, mask.elements[key]) for key in frozen if key in mask.elements]
        if not kept:
            return ALL_FROZEN
        digest = hashlib.sha256()
        for key, dim, indices in kept:
            digest.update(f"{key}|{dim}|{len(indices)}|".encode() + indices.tobytes())
        return 2.0 + int.from_bytes(digest.digest()[:6])

    @cached_property
    def _frozen(self) -> frozenset[str]:
        return frozen_keys(self._model)

    def masked_entries(self, mask: Mask) -> int:
        """Return the number of entries in the submodel's tensors that a mask of single entries covers."""
        shapes = self._compact_shapes(mask)
        return sum(prod(shapes[key]) for key in mask.elements)

    def sent_entries(self, mask: Mask) -> dict[str, int]:
        """Return the number of entries of each parameter that travel with an update; a shared one counts once."""
        shapes, pruned = self._compact_shapes(mask), self.pruned_elements(mask)
        trained = [name for name, value in self._model.named_parameters() if value.requires_grad]
        return {name: prod(shapes[name]) - pruned.get(name, 0) for name in trained}

    @property
    def trained_entries(self) -> int:
        """Entries of the full model's parameters that are trained."""
        return sum(self.sent_entries(Mask.whole(self._plan)).values())

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
