"""The masks of a cohort: the distinct ones, and which of them each client has."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from raysim.types import Mask


def identity(mask: Mask) -> Hashable:
    """Return what is equal for masks that keep the same."""
    return mask.kept.tobytes(), tuple(sorted((key, bits.tobytes()) for key, bits in mask.elements.items()))


@dataclass(frozen=True, slots=True, eq=False)
class CohortMasks(Sequence[Mask]):
    """What each of several clients keeps; a sequence of masks, equal ones being one object.

    Attributes:
        distinct: The masks that differ, in the order in which they come first.
        mask_of: Which of them each client has, `(clients,)`.
    """

    distinct: tuple[Mask, ...]
    mask_of: NDArray[np.int64]

    @staticmethod
    def of(masks: Sequence[Mask]) -> "CohortMasks":
        """Return the masks of clients, one each; those that keep the same are told apart no longer."""
        if isinstance(masks, CohortMasks):
            return masks
        places: dict[Hashable, int] = {}
        distinct: list[Mask] = []
        place_of_object: dict[int, int] = {}
        for key, mask in {id(mask): mask for mask in masks}.items():
            place = places.setdefault(identity(mask), len(distinct))
            if place == len(distinct):
                distinct.append(mask)
            place_of_object[key] = place
        mask_of = np.fromiter((place_of_object[id(mask)] for mask in masks), np.int64, len(masks))
        return CohortMasks(tuple(distinct), mask_of)

    @staticmethod
    def joined(several: Sequence["CohortMasks"]) -> "CohortMasks":
        """Return the masks of several cohorts, one after another."""
        distinct = CohortMasks.of([mask for masks in several for mask in masks.distinct])
        starts = np.cumsum([0, *(len(masks.distinct) for masks in several)])
        places = [masks.mask_of + start for masks, start in zip(several, starts, strict=False)]
        return CohortMasks(distinct.distinct, distinct.mask_of[np.concatenate(places)])

    def __len__(self) -> int:
        return len(self.mask_of)

    @overload
    def __getitem__(self, place: int) -> Mask: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Mask]: ...

    def __getitem__(self, place: int | slice) -> Mask | Sequence[Mask]:
        if isinstance(place, slice):
            return CohortMasks(self.distinct, self.mask_of[place])
        return self.distinct[int(self.mask_of[place])]

    def __iter__(self) -> Iterator[Mask]:
        return (self.distinct[place] for place in self.mask_of.tolist())

    def take(self, places: NDArray[np.int64]) -> "CohortMasks":
        """Return the masks of some clients."""
        mask_of = self.mask_of[places]
        if len(self.distinct) == 1:
            return CohortMasks(self.distinct, mask_of)
        used, mask_of = np.unique(mask_of, return_inverse=True)
        return CohortMasks(tuple(self.distinct[place] for place in used), mask_of.astype(np.int64).reshape(-1))

    def each(self, value_of: Callable[[Mask], Any], dtype: type = np.int64) -> NDArray[Any]:
        """Return a number, or some, of each client's mask, computed once for masks that keep the same."""
        return np.array([value_of(mask) for mask in self.distinct], dtype=dtype)[self.mask_of]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which units each client keeps, `(clients, num_units)`."""
        return np.stack([mask.kept for mask in self.distinct])[self.mask_of]
