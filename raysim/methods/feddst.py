"""FedDST (arXiv 2112.09824): one sparse mask that clients readjust while they train."""

from dataclasses import replace
from math import cos, pi, prod

import numpy as np
import torch

from raysim.client.hooks import LocalHooks
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.methods import mask_rules
from raysim.methods.method import CohortReport, RoundView, Trainer
from raysim.methods.options import MethodOptions
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks


def start_sparse(view: RoundView, train: Trainer) -> tuple[Params, Params]:
    """Draw a random mask of ERK densities."""
    rng = seeding.generator(view.seed, "initial mask")
    weights = {key: view.params[key] for key in view.costs.weight_flops}
    counts = layer_counts(weights, view.options["sparsity"])
    kept: Params = {}
    for key, value in weights.items():
        scores = torch.from_numpy(rng.random(tuple(value.shape)))
        kept |= elements.keep_largest({key: scores}, counts[key])
    return elements.apply(kept, view.params), mask_rules.remember(view.memory, kept)


def layer_counts(weights: Params, sparsity: float) -> dict[str, int]:
    """Return how many entries of each tensor stay: Erdos-Renyi-Kernel densities (Evci et al., arXiv 1911.11134).

    A layer's density is proportional to (sum of its dimensions) / (product of them), at most 1.
    """
    raw = {key: sum(value.shape) / prod(value.shape) for key, value in weights.items()}
    dense: set[str] = set()
    wanted = (1 - sparsity) * sum(value.numel() for value in weights.values())
    while True:
        left = wanted - sum(weights[key].numel() for key in dense)
        free = sum(raw[key] * weights[key].numel() for key in weights if key not in dense)
        factor = left / free if free else 0.0
        full = {key for key in weights if key not in dense and factor * raw[key] >= 1}
        if not full:
            break
        dense |= full
    return {
        key: value.numel() if key in dense else max(1, round(factor * raw[key] * value.numel()))
        for key, value in weights.items()
    }


def is_readjusting(round: int, options: MethodOptions) -> bool:
    """Whether clients readjust their masks in this round."""
    return round % int(options["readjust_rounds"]) == 0


def adjusted_share(round: int, options: MethodOptions) -> float:
    """Return a_t, the share of active weights that is replaced: cosine-decayed (section 3.2)."""
    progress = min(1.0, round / options["decay_rounds"])
    return float(options["adjust_share"]) / 2 * (1 + cos(pi * progress))


def readjust(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Half-way through the training, prune by magnitude and regrow as many by gradient, layer by layer.

    A client with a single step does not change its mask: it could not train what it regrows.
    """
    if not is_readjusting(view.broadcast.round, options) or view.num_steps < 2:
        return LocalHooks()
    share, step, gradients = adjusted_share(view.broadcast.round, options), 0, dict[str, torch.Tensor]()

    def observe(found: list[torch.Tensor]) -> None:
        nonlocal step
        step += 1
        gradients.update(zip(view.trainable, found, strict=True))

    def move() -> None:
        if step != view.num_steps // 2:
            return
        weights = view.model.state_dict()
        for key, kept in list(view.elements.items()):
            view.elements[key] = pruned_and_regrown(weights[key], gradients[key], kept, share)

    return LocalHooks(observe=(observe,), after_step=(move,))


def pruned_and_regrown(
    weight: torch.Tensor, gradient: torch.Tensor, kept: torch.Tensor, share: float
) -> torch.Tensor:
    """Return a mask of as many entries: without the smallest weights, with the largest gradients among the pruned."""
    count = int(kept.sum())
    replaced = min(int(share * count), kept.numel() - count)
    magnitude = torch.where(kept, weight.abs().double(), -torch.inf)
    survivors = elements.keep_largest({"entry": magnitude}, count - replaced)["entry"]
    candidates = torch.where(kept, -torch.inf, gradient.abs().double())
    return survivors | elements.keep_largest({"entry": candidates}, replaced)["entry"]


def unite_and_prune(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Unite the clients' masks and prune the union by magnitude back to the densities (algorithm 1)."""
    view = report.view
    if not is_readjusting(view.round, view.options):
        return params, memory
    held = {key: report.coverage[key] > 0 for key in mask_rules.remembered(memory)}
    counts = layer_counts({key: params[key] for key in held}, view.options["sparsity"])
    kept: Params = {}
    for key, union in held.items():
        magnitude = torch.where(union, params[key].abs().double(), -torch.inf)
        kept |= elements.keep_largest({key: magnitude}, counts[key])
    return elements.apply(kept, params), mask_rules.remember(memory, kept)


def add_mask_bytes(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count the masks that clients send back when they have readjusted them."""
    if not is_readjusting(view.round, view.options):
        return load
    pruned = view.costs.pruned_elements(chosen[0])
    entries = sum(view.params[key].numel() for key in pruned)
    extra = elements.mask_bytes(entries, entries - sum(pruned.values()))
    return replace(load, up_bytes=load.up_bytes + np.int64(extra))
