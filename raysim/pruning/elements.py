"""Masks of single entries: bits in the full model's coordinates, and their part in a submodel."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.tensors import Params
from raysim.pruning.masks import Mask
from raysim.pruning.submodel import Cut, kept_elements, take

Bits = dict[str, NDArray[np.uint8]]
"""Kept entries by state-dict key, eight to a byte."""


def pack(elements: Params) -> Bits:
    """Pack booleans, eight to a byte."""
    return {key: np.packbits(kept.numpy()) for key, kept in elements.items()}


def unpack(bits: Mapping[str, NDArray[np.uint8]], shapes: Mapping[str, Sequence[int]]) -> Params:
    """Return the booleans of packed masks.

    >>> kept = {"weight": torch.tensor([[True, False, True], [False, True, True]])}
    >>> bool((unpack(pack(kept), {"weight": (2, 3)})["weight"] == kept["weight"]).all())
    True
    """
    return {key: kept_elements(packed, shapes[key]) for key, packed in bits.items()}


def of_submodel(mask: Mask, shapes: Mapping[str, Sequence[int]], cut: Cut) -> Params:
    """Return the kept entries of a mask in the coordinates of its submodel."""
    return {key: take(kept, cut.get(key, {})) for key, kept in unpack(mask.elements, shapes).items()}


def apply(elements: Params, params: Params) -> Params:
    """Return parameters with zeros in place of entries that are not kept; tensors without a mask are shared."""
    return {key: value * elements[key] if key in elements else value for key, value in params.items()}


def keep_largest(scores: Params, count: int) -> Params:
    """Keep the `count` entries with the highest scores over all tensors; of equal scores the first."""
    flat = torch.cat([score.flatten().double() for score in scores.values()])
    kept = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    kept[torch.sort(flat, descending=True, stable=True).indices[: max(0, min(count, len(flat)))]] = True
    pieces = torch.split(kept, [score.numel() for score in scores.values()])
    return {key: piece.view(score.shape) for (key, score), piece in zip(scores.items(), pieces, strict=True)}


def mask_bytes(num_entries: int, num_kept: int) -> int:
    """Return the bytes that encode which entries are kept: a bitmap or a list of 32-bit indices, the shorter one.

    >>> mask_bytes(64, 1), mask_bytes(64, 30)
    (4, 8)
    """
    return min(-(-num_entries // 8), 4 * num_kept)
