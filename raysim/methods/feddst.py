"""FedDST (arXiv 2112.09824): one sparse mask that clients readjust while they train."""

from dataclasses import replace

import numpy as np

from raysim.client.hooks import LocalHooks
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core.tensors import Params
from raysim.methods import mask_rules, topology
from raysim.methods.method import CohortReport, RoundView
from raysim.methods.options import MethodOptions
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks


def is_readjusting(round: int, options: MethodOptions) -> bool:
    """Whether clients readjust their masks in this round."""
    return round % int(options["readjust_rounds"]) == 0


def readjust(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Half-way through the training, prune by magnitude and regrow as many by gradient, layer by layer.

    A client with a single step does not change its mask: it could not train what it regrows.
    """
    if not is_readjusting(view.broadcast.round, options) or view.num_steps < 2:
        return LocalHooks()
    share, step = topology.adjusted_share(view.broadcast.round, options), 0
    gradients, observe = topology.last_gradients(view)

    def move() -> None:
        nonlocal step
        step += 1
        if step != view.num_steps // 2:
            return
        weights = view.model.state_dict()
        for key, kept in list(view.elements.items()):
            replaced = topology.num_replaced(kept, share)
            view.elements[key] = topology.pruned_and_regrown(weights[key], gradients[key], kept, replaced)

    return LocalHooks(observe=(observe,), after_step=(move,))


def unite_and_prune(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Unite the clients' masks and prune the union by magnitude back to the densities (algorithm 1)."""
    view, memory = report.view, mask_rules.remember_holders(memory, report)
    if not is_readjusting(view.round, view.options):
        return params, memory
    held = {key: report.coverage[key] > 0 for key in mask_rules.remembered(memory)}
    counts = topology.erk_counts({key: params[key] for key in held}, view.options["sparsity"])
    kept: Params = {}
    for key, union in held.items():
        kept[key] = topology.largest_active(params[key], union, counts[key])
    return elements.apply(kept, params), mask_rules.remember(memory, kept)


def add_mask_bytes(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count masks where they change: those clients do not hold yet, and those they send back readjusted."""
    load = mask_rules.without_known_masks(view, chosen, load)
    if not is_readjusting(view.round, view.options):
        return load
    moves = load.steps > 1  # a client with a single step does not change its mask
    return replace(load, up_bytes=load.up_bytes + np.where(moves, mask_rules.bytes_of_mask(view, chosen[0]), 0))
