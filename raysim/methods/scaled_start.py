"""Scale the first global model so that its submodels start with outputs as large as the full model's."""

import numpy as np
import torch

from raysim.clock.work import Cohort
from raysim.core.tensors import Params
from raysim.pruning.masks import num_kept
from raysim.pruning.plan import ChannelPlan


def scaled_start(plan: ChannelPlan, params: Params, everybody: Cohort, kept: frozenset[str]) -> Params:
    """Divide weights that read cut channels by the square root of the share of these channels that clients hold.

    Where layers draw their weights with a variance of c / inputs (He et al., arXiv 1502.01852, eq 10; PyTorch's
    layers with another c), a submodel has fewer inputs, so the variance of its outputs is that share of the full
    model's in every layer. Divided by the root of the share it is the same. The share is the mean over all clients:
    narrower ones stay below, wider ones come above. Masks that choose across groups keep other shares in each group.

    Args:
        plan: The model's channel groups.
        params: The model as it was built.
        everybody: All clients, with the shares that they train; they count by their rows.
        kept: Keys of tensors that stay as they are, since they are not trained. A tensor that two layers share stays,
            too, if one of them does not read cut channels with it.
    """
    able = everybody.take(everybody.keep_ratios > 0)
    if not able.examples.sum():
        return params
    ratios, which = np.unique(able.keep_ratios, return_inverse=True)
    rows = np.bincount(which, weights=able.examples)
    scaled, shared = dict(params), _shared_with_others(plan, params)
    for group, slot in plan.slots():
        if slot.role != "consumer" or group.kind != "channel" or slot.key in kept | shared:
            continue
        shares = [num_kept(group.size, ratio) / group.size for ratio in ratios]
        factors = torch.ones(plan.shapes[slot.key][slot.dim], dtype=torch.float64)
        factors[torch.from_numpy(slot.indices.ravel())] = float(np.average(shares, weights=rows)) ** -0.5
        shape = [1] * len(plan.shapes[slot.key])
        shape[slot.dim] = -1
        scaled[slot.key] = (scaled[slot.key].double() * factors.view(shape)).to(scaled[slot.key])
    return scaled


def _shared_with_others(plan: ChannelPlan, params: Params) -> frozenset[str]:
    """Return the keys of tensors that have several keys, not all of which are of weights that read cut channels."""
    keys_of: dict[int, list[str]] = {}
    for key, tensor in params.items():
        keys_of.setdefault(tensor.data_ptr(), []).append(key)
    readers = {slot.key for _, slot in plan.slots() if slot.role == "consumer"}
    several = (keys for keys in keys_of.values() if len(keys) > 1 and not readers.issuperset(keys))
    return frozenset(key for keys in several for key in keys)
