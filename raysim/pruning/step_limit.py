"""End a trace that would not end by itself: Torch-Pruning's search does not, for some models."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from raysim.core.log import warning

WARN_AFTER_S = 10.0
MAX_STEPS = 40_000_000
"""Ten times the steps for a small CNN on images of 224 x 224, a hundred times those for the largest DenseNet."""
LONGEST_LIST = 10
"""Entries of a list of channel indices, in units of the model's widest dimension; a trace that ends stays below 1."""

Mapping = Callable[[list[Any]], list[Any]]


class StepLimitError(RuntimeError):
    """The search for channel groups has taken more steps than allowed, or makes no progress."""


class StepCounter:
    """Counts the steps of a search, warns once where it takes long, and ends it where it takes too many.

    The limits count steps and entries, not seconds, so that the outcome does not depend on how busy the machine is.
    """

    def __init__(self, max_steps: int, max_entries: int) -> None:
        self._max_steps, self._max_entries, self._steps = max_steps, max_entries, 0
        self._warn_at_s = time.monotonic() + WARN_AFTER_S

    def add(self, indices: list[Any]) -> None:
        """Count a step, and one for each channel index that it reads or writes.

        Raises:
            StepLimitError: If these are too many.
        """
        self._steps += 1 + len(indices)
        if len(indices) > self._max_entries:
            raise StepLimitError("its reshapes repeat channel indices without end")
        if self._steps > self._max_steps:
            raise StepLimitError(f"the search for channel groups takes more than max_steps={self._max_steps:,} steps")
        if time.monotonic() > self._warn_at_s:
            self._warn_at_s = float("inf")
            warning(
                f"tracing the model has taken {WARN_AFTER_S:g} s so far; smaller example inputs are traced faster"
            )


def limit_steps(graph: Any, model: nn.Module, max_steps: int) -> None:
    """Let Torch-Pruning's dependency graph count its steps.

    From a layer on, it follows dependencies until they lead to no list of channel indices that it has not seen.
    Where a model's reshapes form a cycle, as in Swin, each pass makes the lists longer, and there is no end.
    """
    widest = max((size for tensor in model.state_dict().values() for size in tensor.shape), default=1)
    counter = StepCounter(max_steps, LONGEST_LIST * widest)
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = _CountedMappings(dependency.index_mapping, counter)


class _CountedMappings(list[Any]):
    """The index mappings of one dependency; they count when the graph iterates over them to follow it."""

    def __init__(self, mappings: list[Any], counter: StepCounter) -> None:
        super().__init__(mappings)
        self._counter = counter

    def __iter__(self) -> Iterator[Any]:
        self._counter.add([])
        for mapping in super().__iter__():
            yield None if mapping is None else self._counted(mapping)

    def _counted(self, mapping: Mapping) -> Mapping:
        def mapped(indices: list[Any]) -> list[Any]:
            found = mapping(indices)
            self._counter.add(found)
            return found

        return mapped
