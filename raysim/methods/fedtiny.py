"""FedTiny (arXiv 2212.01977): the sparse start is the best of a pool, compared with fresh BatchNorm statistics."""

from dataclasses import replace

import numpy as np
import torch

from raysim.client import evaluation
from raysim.client.hooks import LocalHooks, Report
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core import seeding
from raysim.core.inputs import take
from raysim.core.tensors import Params
from raysim.data.batches import batch_slices, num_batches
from raysim.methods import mask_rules, topology
from raysim.methods.method import RoundView, Trainer
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks

LOSS = "candidate_loss"


def choose_start(view: RoundView, train: Trainer) -> tuple[Params, Params]:
    """Let all clients compare a pool of sparse models; start from the one of least mean loss.

    Source: FedTiny, adaptive batch normalization selection (algorithm 1). Weights are not trained meanwhile.
    """
    losses, starts = [], []
    for kept in candidates(view):
        loss, params = _compared(view, train, kept)
        losses.append(loss)
        starts.append((params, kept))
    params, kept = starts[int(np.argmin(losses))]
    return params, mask_rules.remember(view.memory, kept)


def candidates(view: RoundView) -> list[Params]:
    """Return the active weights of each candidate: of every layer the largest, at densities with random factors.

    The factors are uniform from 0.5 to 1.5; all candidates have the wanted sparsity.
    """
    weights = {key: view.params[key] for key in view.costs.weight_flops}
    rng = seeding.generator(view.seed, "candidates")
    factors = rng.uniform(0.5, 1.5, (view.options["pool_size"], len(weights)))
    pool = []
    for row in factors.tolist():
        densities = dict(zip(weights, row, strict=True))
        counts = topology.counts_of_densities(weights, densities, view.options["sparsity"])
        everything = {key: torch.ones_like(value, dtype=torch.bool) for key, value in weights.items()}
        pool.append({key: topology.largest_active(weights[key], everything[key], counts[key]) for key in weights})
    return pool


def _compared(view: RoundView, train: Trainer, kept: Params) -> tuple[float, Params]:
    """Return a candidate's loss summed over the clients' rows, and the candidate with the clients' statistics."""
    mask, params = mask_rules.single_entries(view.plan, kept), elements.apply(kept, view.params)
    is_normed = any(key.endswith("running_mean") for key in params)
    if is_normed:
        _, params = train(view.clients, mask, 0, (refresh_statistics,), params, charge=load_of_refreshing)
    charge = load_of_scoring_again if is_normed else load_of_scoring
    reports, _ = train(view.clients, mask, 0, (report_loss,), params, charge=charge)
    return float(reports.sums[LOSS].value(LOSS)), params


def refresh_statistics(view: ClientView) -> LocalHooks:
    """Set the running statistics of BatchNorm to their mean over the client's batches; weights stay."""

    def finish() -> Report:
        batches = batch_slices(len(view.targets), view.workload.local.batch_size)
        evaluation.estimate_statistics(view.model, (take(view.inputs, batch) for batch in batches))
        return Report()

    return LocalHooks(finish=(finish,))


def report_loss(view: ClientView) -> LocalHooks:
    """Report the loss on the client's rows, in eval mode."""

    def finish() -> Report:
        found = evaluation.score(view.workload.task, view.model, view.inputs, view.targets)
        return Report(sums={LOSS: ({LOSS: torch.tensor(found.loss, dtype=torch.float64)}, 1.0)})

    return LocalHooks(finish=(finish,))


def load_of_refreshing(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count a candidate down, its statistics up, and a forward pass."""
    statistics = view.costs.buffer_bytes(chosen[0])
    return replace(_with_forward_pass(view, load), up_bytes=np.full_like(load.up_bytes, statistics))


def load_of_scoring_again(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count the mean statistics of a candidate down, a loss up, and a forward pass."""
    statistics = view.costs.buffer_bytes(chosen[0])
    return replace(load_of_scoring(view, chosen, load), down_bytes=np.full_like(load.down_bytes, statistics))


def load_of_scoring(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count a candidate down, a loss up, and a forward pass."""
    return replace(_with_forward_pass(view, load), up_bytes=np.full_like(load.up_bytes, 4))


def _with_forward_pass(view: RoundView, load: CohortLoad) -> CohortLoad:
    """Count a forward pass over the clients' rows; it saves no activations for a backward pass."""
    return replace(
        load,
        train_flops=load.train_flops + view.examples * view.costs.forward_flops,
        steps=load.steps + num_batches(view.examples, view.local.batch_size),
    )
