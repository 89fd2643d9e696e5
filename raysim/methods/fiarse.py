"""FIARSE (arXiv 2407.19389): each client trains the weights of largest magnitude, down to a threshold of its own."""

import numpy as np
import torch
from torch import nn

from raysim.client.hooks import LocalHooks
from raysim.client.view import ClientView
from raysim.core.inputs import Inputs, predict
from raysim.methods.method import RoundView
from raysim.methods.options import MethodOptions
from raysim.pruning import elements, masks
from raysim.pruning.masks import Mask, Scores
from raysim.pruning.significance import first_channels

SIZES = ("weights", "channels")
"""A client's keep ratio is a share of all weights, or of channels: then it keeps as many weights as they have."""


def largest_weights(view: RoundView, scores: Scores) -> list[Mask]:
    """Keep each client's number of weights of largest magnitude in the whole model, of equal ones the first.

    Source: FIARSE, algorithm 1: theta_i is the k-th largest of the global magnitudes, over all layers together.
    """
    magnitudes = torch.cat([view.params[key].abs().flatten() for key in view.costs.weight_flops])
    return _masks_along(view, torch.sort(magnitudes, descending=True, stable=True).indices)


def as_many_weights(view: RoundView, scores: Scores) -> list[Mask]:
    """Keep as many weights as `largest_weights`, the first ones: they cost the same whatever the magnitudes are."""
    total = sum(view.params[key].numel() for key in view.costs.weight_flops)
    return _masks_along(view, torch.arange(total))


def _masks_along(view: RoundView, order: torch.Tensor) -> list[Mask]:
    """Return each client's mask of the first weights in an order of all; equal masks are one object."""
    weights = {key: view.params[key] for key in view.costs.weight_flops}
    sizes = [weight.numel() for weight in weights.values()]
    units = np.ones(view.plan.num_units, dtype=np.bool_)

    def first_weights(ratio: float) -> Mask:
        kept, count = torch.zeros(len(order), dtype=torch.bool), kept_weights(view, ratio)
        kept[order[:count]] = True
        pieces = zip(weights.items(), torch.split(kept, sizes), strict=True)
        held = {key: piece.view(weight.shape) for (key, weight), piece in pieces}
        return Mask(units, elements.pack(held) if count < len(order) else {})

    return masks.shared_by_ratio(view.keep_ratios, first_weights)


def kept_weights(view: RoundView, keep_ratio: float) -> int:
    """Return how many weights a client of a keep ratio keeps; see `SIZES`."""
    whole = Mask.whole(view.plan)
    if view.options["size"] == "weights":
        return masks.num_kept(_weights_in(view, whole), keep_ratio)
    return _weights_in(view, masks.keep_top(view.plan, first_channels(view.plan), keep_ratio))


def _weights_in(view: RoundView, mask: Mask) -> int:
    entries = view.costs.sent_entries(mask)
    return sum(entries[key] for key in view.costs.weight_flops)


def controlled_by_threshold(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Train x M(x), M(x) = 1 where |x| >= theta, with the biased gradient of the threshold (FIARSE, eq 3).

    The gradient of the loss with respect to x is that with respect to x M(x), times
    M(x) (1 + 2 |x| theta / (|x| + theta)^2): the derivative of the mask is that of (|x| - theta) / (|x| + theta)
    above theta. A weight that falls below the threshold counts as zero. Clients of the whole model have no threshold.
    """
    if not view.elements:
        return LocalHooks()
    minimised, threshold = view.workload.task.minimised, smallest_kept(view)

    def loss(model: nn.Module, inputs: Inputs, targets: torch.Tensor) -> torch.Tensor:
        weights = dict(model.named_parameters())
        masked = {key: _masked(weights[key], held, threshold) for key, held in view.elements.items()}
        return minimised(predict(model, inputs, masked), targets)

    return LocalHooks(loss=loss)


def smallest_kept(view: ClientView) -> torch.Tensor:
    """Return a client's threshold, the smallest magnitude among the weights that it received."""
    return torch.stack([view.start[key][held].abs().min() for key, held in view.elements.items() if held.any()]).min()


def _masked(weight: torch.Tensor, held: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return x M(x), whose gradient is that of eq 3."""
    value = weight.detach()
    magnitude = value.abs()
    mask = held & (magnitude >= threshold)
    bias = 2 * magnitude * threshold / (magnitude + threshold) ** 2
    factor = torch.where(mask & (threshold > 0), 1 + bias, mask.to(value))
    return value * mask + (weight - value) * factor
