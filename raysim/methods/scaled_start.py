"""Scale the first global model so that its submodels start as networks of their own width."""

import numpy as np
import torch

from raysim.clock.work import Cohort
from raysim.core.tensors import Params
from raysim.pruning.masks import num_kept
from raysim.pruning.plan import ChannelPlan


def scaled_start(plan: ChannelPlan, params: Params, everybody: Cohort) -> Params:
    """Divide weights that read cut channels by the square root of the share of these channels that clients hold.

    Layers draw their weights with a variance of 1 / inputs (He et al., arXiv 1502.01852, eq 10; PyTorch's default up
    to a factor). A submodel has fewer inputs, so the variance of its outputs is that share of the full model's in
    every layer; divided by the root of the share it is that of a network drawn with the submodel's width.

    Args:
        plan: The model's channel groups.
        params: The model as it was built.
        everybody: All clients, with the shares that they train; they count by their rows.
    """
    able = everybody.take(everybody.keep_ratios > 0)
    if not able.examples.sum():
        return params
    ratios, which = np.unique(able.keep_ratios, return_inverse=True)
    rows = np.bincount(which, weights=able.examples)
    scaled = dict(params)
    for group, slot in plan.slots():
        if slot.role != "consumer" or group.kind != "channel":
            continue
        shares = [num_kept(group.size, ratio) / group.size for ratio in ratios]
        factors = torch.ones(plan.shapes[slot.key][slot.dim], dtype=torch.float64)
        factors[torch.from_numpy(slot.indices.ravel())] = float(np.average(shares, weights=rows)) ** -0.5
        shape = [1] * len(plan.shapes[slot.key])
        shape[slot.dim] = -1
        scaled[slot.key] = (scaled[slot.key].double() * factors.view(shape)).to(scaled[slot.key])
    return scaled
