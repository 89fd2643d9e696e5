"""Masks: which units of each channel group a client keeps, from scores and for whole cohorts."""

import base64
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.core.errors import SettingError
from raysim.core.json_text import json_in
from raysim.core.storage import atomic
from raysim.pruning.groups import ChannelGroups


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """The units and entries that a submodel keeps.

    Attributes:
        kept: Whether each unit is kept, `(num_units,)` booleans: the plan's channel groups one after another.
        elements: For hybrid masks, whether each entry of a tensor is kept: by state-dict key, in the full model's
            coordinates, eight to a byte (`numpy.packbits`); other tensors are whole.
    """

    kept: NDArray[np.bool_]
    elements: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @staticmethod
    def whole(plan: ChannelGroups) -> "Mask":
        """Return the mask that keeps everything."""
        return Mask(np.ones(plan.num_units, dtype=np.bool_))

    @property
    def is_dense(self) -> bool:
        """Whether nothing is dropped."""
        return bool(self.kept.all()) and not self.elements

    def save(self, path: str | Path) -> None:
        """Write the mask as JSON: a digit per unit, and single entries in base64."""
        elements = {key: base64.b64encode(packed.tobytes()).decode() for key, packed in self.elements.items()}
        kept = "".join("1" if unit else "0" for unit in self.kept)
        atomic.write_text(Path(path), json.dumps({"kept": kept, "elements": elements}))

    @staticmethod
    def load(path: str | Path) -> "Mask":
        """Read a mask written by `save`.

        Raises:
            SettingError: If the file does not hold a mask.
        """
        try:
            content = json_in(Path(path).read_text(encoding="utf-8"))
            kept = np.array([{"0": False, "1": True}[digit] for digit in content["kept"]], dtype=np.bool_)
            elements = {
                key: np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
                for key, text in content["elements"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"path={str(path)!r} does not hold a mask: {error!r}") from None
        return Mask(kept, elements)


Scores = NDArray[np.float64]


def num_kept(size: int, keep_ratio: float) -> int:
    """Return the number of a group's units that are kept: at least one (CA-HFP, reference algorithm, step 1).

    >>> [num_kept(10, ratio) for ratio in (0.01, 0.25, 0.3, 1.0)]
    [1, 3, 3, 10]
    """
    return max(1, ceil(keep_ratio * size - 1e-9))


def keep_top(plan: ChannelGroups, scores: Scores, keep_ratio: float) -> Mask:
    """Keep the highest-scored units of each group; of equal scores the first.

    Args:
        plan: The model's channel groups.
        scores: `(num_units,)`.
        keep_ratio: Share of each group's units to keep, in (0, 1].
    """
    kept = np.zeros(plan.num_units, dtype=np.bool_)
    for group in plan.groups:
        units = plan.units[group.name]
        best = np.argsort(-scores[units], kind="stable")[: num_kept(group.size, keep_ratio)]
        kept[units.start + best] = True
    return Mask(kept)


def keep_top_for_cohort(plan: ChannelGroups, scores: Scores, keep_ratios: NDArray[np.float64]) -> list[Mask]:
    """Return the mask of each client; clients with equal scores and ratio share one object.

    Args:
        plan: The model's channel groups.
        scores: One shared ranking `(num_units,)` or one per client `(cohort, num_units)`.
        keep_ratios: `(cohort,)`.
    """
    if scores.ndim == 2:
        return [keep_top(plan, own, ratio) for own, ratio in zip(scores, keep_ratios, strict=True)]
    return shared_by_ratio(keep_ratios, lambda ratio: keep_top(plan, scores, ratio))


def shared_by_ratio(keep_ratios: NDArray[np.float64], choose: Callable[[float], Mask]) -> list[Mask]:
    """Return the mask of each client, chosen once for each keep ratio; clients with equal ratios share one object."""
    of_ratio = {ratio: choose(ratio) for ratio in sorted(set(keep_ratios.tolist()))}
    return [of_ratio[ratio] for ratio in keep_ratios.tolist()]


def noise(plan: ChannelGroups, clients: NDArray[np.int64], round: int, seed: int) -> Scores:
    """Return fresh random scores for each client and round, `(cohort, num_units)`."""
    rows = [seeding.generator(seed, "random masks", round, int(client)).random(plan.num_units) for client in clients]
    return np.stack(rows)


def identity(mask: Mask) -> Hashable:
    """Return a key that is equal for equal masks."""
    return mask.kept.tobytes(), tuple(sorted((key, bits.tobytes()) for key, bits in mask.elements.items()))


@dataclass(frozen=True, slots=True, eq=False)
class CohortMasks(Sequence[Mask]):
    """The masks of several clients as a sequence, in which equal masks share one object.

    Attributes:
        distinct: The distinct masks, in the order of their first client.
        mask_of: Index of each client's mask in `distinct`, `(clients,)`.
    """

    distinct: tuple[Mask, ...]
    mask_of: NDArray[np.int64]

    @staticmethod
    def of(masks: Sequence[Mask]) -> "CohortMasks":
        """Return the masks of clients; equal masks share one object."""
        if isinstance(masks, CohortMasks):
            return masks
        index_of: dict[Hashable, int] = {}
        distinct: list[Mask] = []
        index_of_object: dict[int, int] = {}
        for key, mask in {id(mask): mask for mask in masks}.items():
            index = index_of.setdefault(identity(mask), len(distinct))
            if index == len(distinct):
                distinct.append(mask)
            index_of_object[key] = index
        mask_of = np.fromiter((index_of_object[id(mask)] for mask in masks), np.int64, len(masks))
        return CohortMasks(tuple(distinct), mask_of)

    @staticmethod
    def joined(several: Sequence["CohortMasks"]) -> "CohortMasks":
        """Return the masks of several cohorts one after another."""
        distinct = CohortMasks.of([mask for masks in several for mask in masks.distinct])
        starts = np.cumsum([0, *(len(masks.distinct) for masks in several)])
        indices = [masks.mask_of + start for masks, start in zip(several, starts, strict=False)]
        return CohortMasks(distinct.distinct, distinct.mask_of[np.concatenate(indices)])

    def __len__(self) -> int:
        return len(self.mask_of)

    @overload
    def __getitem__(self, index: int) -> Mask: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mask]: ...

    def __getitem__(self, index: int | slice) -> Mask | Sequence[Mask]:
        if isinstance(index, slice):
            return CohortMasks(self.distinct, self.mask_of[index])
        return self.distinct[int(self.mask_of[index])]

    def __iter__(self) -> Iterator[Mask]:
        return (self.distinct[index] for index in self.mask_of.tolist())

    def take(self, indices: NDArray[np.int64]) -> "CohortMasks":
        """Return the masks of some clients, by index."""
        mask_of = self.mask_of[indices]
        if len(self.distinct) == 1:
            return CohortMasks(self.distinct, mask_of)
        used, mask_of = np.unique(mask_of, return_inverse=True)
        return CohortMasks(tuple(self.distinct[index] for index in used), mask_of.astype(np.int64).reshape(-1))

    def each(self, value_of: Callable[[Mask], Any], dtype: type = np.int64) -> NDArray[Any]:
        """Return one value, or several, per client, computed once for equal masks."""
        return np.array([value_of(mask) for mask in self.distinct], dtype=dtype)[self.mask_of]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Whether each client keeps each unit, `(clients, num_units)`."""
        return np.stack([mask.kept for mask in self.distinct])[self.mask_of]
