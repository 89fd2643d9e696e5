"""FedRTS (arXiv 2501.19122): the sparse topology is drawn by Thompson sampling, from votes on every weight."""

from dataclasses import replace

import torch

from raysim.client.hooks import LocalHooks, Report
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.methods import mask_rules, topology
from raysim.methods.method import CohortReport, RoundView
from raysim.methods.options import MethodOptions
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks

CORE, CANDIDATES = "core_votes", "candidate_votes"
ALPHA, BETA = "alpha/", "beta/"
"""The parameters of every weight's Beta distribution; 1 at first."""
UNKNOWN = 0.5
"""Aggregated outcome of a pruned weight: the server has no gradient of it."""


def vote(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Vote for the core of the active weights, and when the topology is due also for pruned ones.

    A layer keeps K weights, of which k are reconsidered. The core are the K - k largest after training; the server
    computes these votes from the update. The candidates are the k pruned weights with the largest gradients, of the
    last minibatch; clients send their indices.
    """
    kept, round = topology.layers_of_client(view), view.broadcast.round
    if round > options["decay_rounds"]:
        return LocalHooks()
    replaced, rows = counts_of(kept, round, options), len(view.targets)
    gradients, observe = topology.last_gradients(view)

    def read(update: Params) -> Report:
        trained = {key: view.start[key] + update[key] for key in kept}
        core = {key: topology.survivors(trained[key], held, replaced[key]) for key, held in kept.items()}
        return Report(sums={CORE: (_numbers(core), rows)})

    def finish() -> Report:
        chosen = {key: topology.largest_pruned(gradients[key], held, replaced[key]) for key, held in kept.items()}
        return Report(sums={CANDIDATES: (_numbers(chosen), rows)})

    if not topology.is_readjusting(round, options):
        return LocalHooks(received=(read,))
    return LocalHooks(received=(read,), observe=(observe,), finish=(finish,))


def counts_of(kept: Params, round: int, options: MethodOptions) -> dict[str, int]:
    """Return how many active weights of each layer are reconsidered in a round, by key."""
    share = topology.adjusted_share(round, options)
    return {key: topology.num_replaced(held, share) for key, held in kept.items()}


def _numbers(chosen: Params) -> Params:
    return {key: bits.double() for key, bits in chosen.items()}


def sample_topology(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Learn from the outcomes of a round; when it is due, draw the topology anew (TSAdj).

    The outcome of an active weight is X = gamma [core of the new model] + (1 - gamma) (share of rows whose clients
    vote for it); that of a pruned one, when the topology is due, gamma / 2 + (1 - gamma) (that share). Then (alpha,
    beta) += lambda (X, 1 - X), xi ~ Beta(alpha, beta), and the K largest xi of a layer are active.
    """
    view, memory = report.view, mask_rules.remember_holders(memory, report)
    if view.round > view.options["decay_rounds"]:
        return params, memory
    kept = topology.layers_of_server(view)
    memory = memory | posteriors(params, memory, kept, report)
    if not topology.is_readjusting(view.round, view.options):
        return params, memory
    rng, drawn = seeding.generator(view.seed, "topology", view.round), dict[str, torch.Tensor]()
    for key, held in kept.items():
        xi = torch.from_numpy(rng.beta(memory[f"{ALPHA}{key}"].numpy(), memory[f"{BETA}{key}"].numpy()))
        drawn |= elements.keep_largest({key: xi}, int(held.sum()))
    return elements.apply(drawn, params), mask_rules.remember(memory, drawn)


def posteriors(params: Params, memory: Params, kept: Params, report: CohortReport) -> Params:
    """Return alpha and beta of every weight after the outcomes of a round, as tensors by name."""
    view, sums, rows = report.view, report.contribution.sums, float(report.view.examples.sum())
    share, scale = float(view.options["aggregated_share"]), float(view.options["evidence"])
    is_due, replaced = topology.is_readjusting(view.round, view.options), counts_of(kept, view.round, view.options)
    updated: Params = {}
    for key, held in kept.items():
        core = topology.survivors(params[key], held, replaced[key]).double()
        outcome = share * core + (1 - share) * sums[CORE].value(key) / rows
        seen = held
        if is_due:
            pruned = share * UNKNOWN + (1 - share) * sums[CANDIDATES].value(key) / rows
            outcome, seen = torch.where(held, outcome, pruned), torch.ones_like(held)
        for name, evidence in ((ALPHA, outcome), (BETA, 1 - outcome)):
            old = memory.get(f"{name}{key}", torch.ones_like(outcome))
            updated[f"{name}{key}"] = old + scale * evidence * seen
    return updated


def add_candidate_bytes(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count the candidates that clients send, and masks only where clients do not hold them."""
    load = mask_rules.without_known_masks(view, chosen, load)
    if not topology.is_readjusting(view.round, view.options):
        return load
    kept = topology.layers_of_server(view)
    pruned = sum(int((~held).sum()) for held in kept.values())
    candidates = sum(counts_of(kept, view.round, view.options).values())
    return replace(load, up_bytes=load.up_bytes + elements.mask_bytes(pruned, candidates))
