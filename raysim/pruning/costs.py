"""What the submodel a mask leaves costs, counted once per width."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from raysim.models.cost import ModelCost, count
from raysim.pruning import submodel
from raysim.pruning.groups import ChannelGroups
from raysim.types import Mask


class CostTable:
    """Costs of a model's submodels by the widths of their channel groups."""

    def __init__(self, model: nn.Module, plan: ChannelGroups, input_shape: Sequence[int]) -> None:
        self._model, self._plan, self._input_shape = model, plan, tuple(input_shape)
        self._by_width: dict[tuple[int, ...], ModelCost] = {}

    @property
    def dense(self) -> ModelCost:
        """Costs of the full model."""
        return self.of(Mask(np.ones(self._plan.num_units, dtype=np.bool_)))

    def of(self, mask: Mask) -> ModelCost:
        """Return the costs of the submodel a mask leaves."""
        width = submodel.widths(self._plan, mask)
        if width not in self._by_width:
            shapes = submodel.compact_shapes(self._plan, submodel.cut_for(self._plan, mask))
            small = submodel.skeleton(self._model, shapes, device="meta")
            self._by_width[width] = count(small, self._input_shape)
        return self._by_width[width]

    def pruning_ratio(self, mask: Mask) -> float:
        """Return the share of the full model's parameters that the mask removes."""
        return 1 - self.of(mask).parameters / self.dense.parameters
