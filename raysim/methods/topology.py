"""Topology of a sparse global model: its random start, and which weights of which layers are replaced when."""

from collections.abc import Mapping
from dataclasses import replace
from math import cos, pi, prod

import numpy as np
import torch

from raysim.client.hooks import GradientObserver, LocalHooks, Report
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core import seeding
from raysim.core.options import Option
from raysim.core.tensors import Params
from raysim.methods import mask_rules
from raysim.methods.method import CohortReport, RoundView, Trainer
from raysim.methods.options import MethodOptions
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks

GRADIENTS = "largest_gradients"
"""Sum of n_k times the gradients that clients report."""


def sparse_options(readjust_rounds: int, adjust_share: float, decay_rounds: int) -> dict[str, Option]:
    """Return the options of methods whose sparse topology changes every few rounds, with a row's defaults."""
    return {
        "sparsity": Option(0.5, "share of the weights that is pruned", high=0.999),
        "readjust_rounds": Option(readjust_rounds, "rounds between two readjustments", 1),
        "adjust_share": Option(adjust_share, "share of active weights replaced at first", high=1.0),
        "decay_rounds": Option(decay_rounds, "rounds over which that share falls to 0", 1),
    }


def start_sparse(view: RoundView, train: Trainer) -> tuple[Params, Params]:
    """Draw a random mask of ERK densities."""
    rng = seeding.generator(view.seed, "initial mask")
    weights = {key: view.params[key] for key in view.costs.weight_flops}
    counts = erk_counts(weights, view.options["sparsity"])
    kept: Params = {}
    for key, value in weights.items():
        scores = torch.from_numpy(rng.random(tuple(value.shape)))
        kept |= elements.keep_largest({key: scores}, counts[key])
    return elements.apply(kept, view.params), mask_rules.remember(view.memory, kept)


def erk_counts(weights: Params, sparsity: float) -> dict[str, int]:
    """Return how many entries of each tensor stay: Erdos-Renyi-Kernel densities (Evci et al., arXiv 1911.11134).

    A layer's density is proportional to (sum of its dimensions) / (product of them), at most 1.
    """
    return counts_of_densities(
        weights, {key: sum(value.shape) / prod(value.shape) for key, value in weights.items()}, sparsity
    )


def counts_of_densities(weights: Params, densities: Mapping[str, float], sparsity: float) -> dict[str, int]:
    """Return how many entries of each tensor stay, if densities are proportional to given ones, and at most 1.

    Args:
        weights: Tensors by key.
        densities: A positive number for each of them.
        sparsity: Share of all entries that does not stay.
    """
    dense: set[str] = set()
    wanted = (1 - sparsity) * sum(value.numel() for value in weights.values())
    while True:
        left = wanted - sum(weights[key].numel() for key in dense)
        free = sum(densities[key] * weights[key].numel() for key in weights if key not in dense)
        factor = left / free if free else 0.0
        full = {key for key in weights if key not in dense and factor * densities[key] >= 1}
        if not full:
            break
        dense |= full
    return {
        key: value.numel() if key in dense else max(1, round(factor * densities[key] * value.numel()))
        for key, value in weights.items()
    }


def adjusted_share(round: int, options: MethodOptions) -> float:
    """Return the share of active weights that is replaced: cosine-decayed.

    Source: FedDST, section 3.2, a_t; FedTiny, 0.15 (1 + cos(t pi / (R_stop E))) with `adjust_share` 0.3.
    """
    progress = min(1.0, round / options["decay_rounds"])
    return float(options["adjust_share"]) / 2 * (1 + cos(pi * progress))


def is_readjusting(round: int, options: MethodOptions) -> bool:
    """Whether the server changes the topology after this round; the last time is round `decay_rounds`."""
    return round % int(options["readjust_rounds"]) == 0 and 0 < round <= int(options["decay_rounds"])


def num_replaced(kept: torch.Tensor, share: float) -> int:
    """Return how many of a layer's active weights are replaced: a share of them, as long as there are others."""
    count = int(kept.sum())
    return min(int(share * count), kept.numel() - count)


def replaced_counts(kept: Params, round: int, options: MethodOptions) -> dict[str, int]:
    """Return how many weights of each layer are replaced after a round; no layer is in it where that is not due.

    The layers are divided into `blocks` of about as many, and one block changes at a time, from the outputs to the
    inputs (FedTiny, progressive pruning).

    Args:
        kept: Active weights of every layer, in the order of the model.
        round: Counted from 1.
        options: Options of the method.
    """
    if not kept or not is_readjusting(round, options):
        return {}
    blocks = np.array_split(np.array(list(kept)), min(options["blocks"], len(kept)))
    block = blocks[-1 - (round // options["readjust_rounds"] - 1) % len(blocks)]
    share = adjusted_share(round, options)
    return {key: num_replaced(kept[key], share) for key in block.tolist()}


def layers_of_client(view: ClientView) -> Params:
    """Return a client's active weights of every layer, in the order of the model."""
    return {name: view.elements[name] for name in view.trainable if name in view.elements}


def layers_of_server(view: RoundView) -> Params:
    """Return the global model's active weights of every layer before the round, in the order of the model."""
    kept = mask_rules.current(view.plan, view.memory)
    return {key: kept[key] for key in view.costs.weight_flops if key in kept}


def largest_active(weight: torch.Tensor, kept: torch.Tensor, count: int) -> torch.Tensor:
    """Return which of the active weights have the largest magnitudes."""
    magnitude = torch.where(kept, weight.abs().double(), -torch.inf)
    return elements.keep_largest({"entry": magnitude}, count)["entry"]


def survivors(weight: torch.Tensor, kept: torch.Tensor, replaced: int) -> torch.Tensor:
    """Return which of the active weights stay: the largest, without as many as are replaced."""
    return largest_active(weight, kept, int(kept.sum()) - replaced)


def largest_pruned(gradient: torch.Tensor, kept: torch.Tensor, count: int) -> torch.Tensor:
    """Return which of the pruned weights have the largest gradients."""
    return largest_active(gradient, ~kept, count)


def pruned_and_regrown(
    weight: torch.Tensor, gradient: torch.Tensor, kept: torch.Tensor, replaced: int
) -> torch.Tensor:
    """Return a mask of as many entries: without the smallest weights, with the largest gradients among the pruned."""
    return survivors(weight, kept, replaced) | largest_pruned(gradient, kept, replaced)


def last_gradients(view: ClientView) -> tuple[Params, GradientObserver]:
    """Return the gradients of the last minibatch by name, empty before the first, and the hook that fills them in."""
    gradients: Params = {}

    def observe(found: list[torch.Tensor]) -> None:
        gradients.update(zip(view.trainable, found, strict=True))

    return gradients, observe


def report_largest_gradients(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report the largest gradients of pruned weights, as many as are replaced, of the last minibatch."""
    kept = layers_of_client(view)
    counts = replaced_counts(kept, view.broadcast.round, options)
    if not counts:
        return LocalHooks()
    gradients, observe = last_gradients(view)

    def finish() -> Report:
        largest = {
            key: gradients[key] * largest_pruned(gradients[key], kept[key], count) for key, count in counts.items()
        }
        return Report(sums={GRADIENTS: (largest, len(view.targets))})

    return LocalHooks(observe=(observe,), finish=(finish,))


def grow_and_prune(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Prune the smallest weights of the layers that are due, and grow as many where the mean gradient is largest."""
    view, memory = report.view, mask_rules.remember_holders(memory, report)
    if not is_readjusting(view.round, view.options):
        return params, memory
    kept, sums = layers_of_server(view), report.contribution.sums
    for key, replaced in replaced_counts(kept, view.round, view.options).items():
        kept[key] = pruned_and_regrown(params[key], sums[GRADIENTS].value(key), kept[key], replaced)
    return elements.apply(kept, params), mask_rules.remember(memory, kept)


def add_gradient_bytes(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count reported gradients and which weights they are of, and masks only where clients do not hold them."""
    load = mask_rules.without_known_masks(view, chosen, load)
    if not is_readjusting(view.round, view.options):
        return load
    kept = layers_of_server(view)
    counts = replaced_counts(kept, view.round, view.options)
    pruned, reported = sum(int((~kept[key]).sum()) for key in counts), sum(counts.values())
    return replace(load, up_bytes=load.up_bytes + 4 * reported + elements.mask_bytes(pruned, reported))
