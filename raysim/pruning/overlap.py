"""Compare masks: their overlap, their changes, and the share of the model that they drop."""

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.tensors import Params
from raysim.pruning import elements, submodel
from raysim.pruning.coverage import count_coverage
from raysim.pruning.groups import ChannelGroups
from raysim.pruning.masks import CohortMasks, Mask, identity


def masked(plan: ChannelGroups, mask: Mask, params: Params) -> Params:
    """Return the full model, or some of its tensors, with zeros in place of entries that a mask drops."""
    bits = {key: packed for key, packed in mask.elements.items() if key in params}
    whole_or_zero = submodel.zero_dropped(params, submodel.cut_for(plan, mask))
    return elements.apply(elements.unpack(bits, plan.shapes), whole_or_zero)


def share_of_each(masks: Sequence[Mask], shares: NDArray[np.float64]) -> list[tuple[Mask, float]]:
    """Return the distinct masks in the order of their first client, each with the sum of its shares."""
    each = CohortMasks.of(masks)
    return list(zip(each.distinct, np.bincount(each.mask_of, weights=shares).tolist(), strict=True))


def pruned_share(plan: ChannelGroups, masks: Sequence[Mask], examples: NDArray[np.int64]) -> Params:
    """Return q_i = sum p_k (1 - m_ki) of every entry, p_k = n_k / sum n (CA-HFP, arXiv 2603.12591, eq 14).

    Args:
        plan: The model's channel groups.
        masks: Mask of each client.
        examples: Training rows n_k of each client, `(clients,)`.

    Returns:
        Float64 by state-dict key, broadcastable to the key's tensor; exactly 0 for entries that no client drops.
    """
    total = float(examples.sum())
    held = count_coverage(plan, masks, examples)
    single = sorted({key for mask in masks for key in mask.elements})
    ones = {key: torch.ones(plan.shapes[key], dtype=torch.float64) for key in single}
    held |= {key: torch.zeros_like(value) for key, value in ones.items()}
    for mask, count in share_of_each(masks, examples.astype(np.float64)) if single else ():
        for key, value in masked(plan, mask, ones).items():
            held[key] += count * value
    return {key: 1 - counted / total for key, counted in held.items()}


def jaccard(plan: ChannelGroups, first: Mask, second: Mask) -> float:
    """Return |both| / |either| of the channels that two masks keep, or of entries where masks of entries exist.

    >>> none = ChannelPlan((), {}, None, {})
    >>> jaccard(none, Mask(np.array([True, True, False])), Mask(np.array([True, False, True])))
    0.3333333333333333
    """
    keys = sorted({*first.elements, *second.elements})
    one, other = _kept(plan, first, keys), _kept(plan, second, keys)
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0


def _kept(plan: ChannelGroups, mask: Mask, keys: Sequence[str]) -> NDArray[np.bool_]:
    if not keys:
        return mask.kept
    held = masked(plan, mask, {key: torch.ones(plan.shapes[key], dtype=torch.bool) for key in keys})
    return np.concatenate([held[key].numpy().ravel() for key in keys])


def mean_overlap(plan: ChannelGroups, masks: Sequence[Mask]) -> float:
    """Return the mean Jaccard index over all pairs of clients."""
    each = share_of_each(masks, np.ones(len(masks)))
    alike = sum(count * (count - 1) / 2 for _, count in each)
    pairs = itertools.combinations(each, 2)
    unlike = sum(count * times * jaccard(plan, mask, other) for (mask, count), (other, times) in pairs)
    return (alike + unlike) / (len(masks) * (len(masks) - 1) / 2)


def mean_change(
    plan: ChannelGroups, before: Sequence[Mask], after: Sequence[Mask], shares: NDArray[np.float64]
) -> float:
    """Return the mean of 1 - the Jaccard index of each client's two masks, weighted by shares."""
    known: dict[Hashable, float] = {}
    changes = []
    for old, new in zip(before, after, strict=True):
        pair = identity(old), identity(new)
        if pair not in known:
            known[pair] = 1 - jaccard(plan, old, new)
        changes.append(known[pair])
    return float(shares @ changes)
