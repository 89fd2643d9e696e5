"""AutoFLIP (arXiv 2405.10271): clients explore the loss; their displacements and agreement guide a hybrid mask."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.client.hooks import LocalHooks, Report
from raysim.client.view import ClientView
from raysim.core.tensors import Columns, Params
from raysim.methods import mask_rules
from raysim.methods.method import CohortReport, RoundView, Trainer
from raysim.methods.options import MethodOptions
from raysim.pruning import elements, masks, overlap
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import Scores, channel_sums, running_mean
from raysim.server.fill import divide

DISPLACEMENT, EXPLORED, TOOK_PART = "displacement/", "explored/", "took_part"
AGREEMENT, SEEN = "agreement/", "agreement_seen/"
HISTOGRAM, NORM, UNITS = "guidance/", "squared_norm/", "served_units"
DECAY = 0.9
"""Weight of the past in the running mean of the agreement."""
BINS = 20
"""Bins of the histogram of G, of equal width over [0, 1]."""


def explore_losses(view: RoundView, train: Trainer) -> tuple[Params, Params]:
    """Let every client train by itself from the same weights and report its displacement (step 1)."""
    dense = Mask.whole(view.plan)
    hook = partial(explore, options=view.options, without=view.costs.without_gradient)
    updates, explored = train(view.clients, dense, view.options["exploration_epochs"], (hook,), view.params)
    params = explored if view.options["start"] == "explored" else view.params
    found = guidance(squared_displacements(updates.memories, view.clients), len(view.clients))
    counts = {f"{HISTOGRAM}{key}": torch.histc(value, BINS, 0, 1).long() for key, value in found.items()}
    return params, {**view.memory, **counts}


def explore(view: ClientView, options: MethodOptions, without: frozenset[str]) -> LocalHooks:
    """Report the displacement of every parameter; stop after `patience` epochs without a lower loss.

    Parameters `without` a gradient are left out: what they move is rounding noise.
    """
    best, waited = float("inf"), 0

    def is_exhausted(loss: float) -> bool:
        nonlocal best, waited
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        return waited >= int(options["patience"])

    def finish() -> Report:
        after, names = dict(view.model.named_parameters()), [key for key in view.trainable if key not in without]
        return Report(memory={f"{DISPLACEMENT}{key}": after[key].detach() - view.start[key] for key in names})

    return LocalHooks(stop_after_epoch=is_exhausted, finish=(finish,))


def guided_masks(view: RoundView, scores: Scores) -> list[Mask]:
    """Give the cohort one mask from the participants' displacements and their agreement so far (steps 2 to 6)."""
    explored, agreed = guidance(*explored_so_far(view)), _named(AGREEMENT, view.memory)
    importance = {key: value * agreed.get(key, 1.0) for key, value in explored.items()}
    total = sum(value.numel() for value in importance.values())
    pruned = int(view.options["prune_share"] * total)
    kept = elements.keep_largest(importance, total - pruned) if total else {}
    units = np.ones(view.plan.num_units, dtype=np.bool_)
    if view.options["mode"] != "unstructured":
        units = kept_channels(view.plan, kept, importance, view.options)
    bits = elements.pack(kept) if view.options["mode"] != "structured" else {}
    return [Mask(units, bits)] * len(view.clients)


def explored_so_far(view: RoundView) -> tuple[Params, int]:
    """Return the sum of P_k over the participants, and their number.

    With `participants: seen` they are the cohort and all clients whose updates have counted before, each once: a
    cohort of few classes alone would prune the classifier's rows of all others. With `cohort` they are the cohort.
    """
    if view.options["participants"] == "cohort":
        return squared_displacements(view.client_memory, view.clients), len(view.clients)
    took_part = _took_part(view)
    fresh = view.clients[~took_part[view.clients]]
    sums = _named(EXPLORED, view.memory)
    found = squared_displacements(view.client_memory, fresh) if len(fresh) else {}
    total = {key: value + sums[key] if key in sums else value for key, value in found.items()} or sums
    return total, int(took_part.sum()) + len(fresh)


def _took_part(view: RoundView) -> NDArray[np.bool_]:
    """Return which clients' updates have counted before, `(num_clients,)`."""
    found = view.memory.get(TOOK_PART)
    return np.zeros(view.num_clients, dtype=np.bool_) if found is None else np.array(found.numpy())


def squared_displacements(memories: Mapping[int, Params], clients: NDArray[np.int64]) -> Params:
    """Return the sum of P_k, the squared displacements of some clients, in the order of their ids (step 1)."""
    total: Params = {}
    for client in clients.tolist():
        for key, moved in _named(DISPLACEMENT, memories[client]).items():
            square = moved.double() ** 2
            total[key] = total[key] + square if key in total else square
    return total


def guidance(explored: Params, number: int) -> Params:
    """Return G, the mean squared displacement, min-max scaled in each tensor (step 2).

    Where all entries of a tensor moved equally far, each counts 1, or 0 if none moved.

    Args:
        explored: Sum of P_k over some explorers.
        number: How many they are.
    """
    scaled = {}
    for key, total in explored.items():
        importance = total / number
        low, high = importance.min(), importance.max()
        scaled[key] = (
            (importance - low) / (high - low) if high > low else torch.full_like(importance, float(high > 0))
        )
    return scaled


def kept_channels(plan: ChannelPlan, kept: Params, importance: Params, options: MethodOptions) -> NDArray[np.bool_]:
    """Drop channels most of whose weights are pruned, or whose mean importance is at or under a threshold (step 4).

    The best channel of each group stays, and channels without a weight in the ranking do.
    """
    ranked = channel_sums(plan, {key: torch.ones_like(value) for key, value in importance.items()})
    number = np.maximum(ranked, 1)
    pruned = channel_sums(plan, {key: (~held).double() for key, held in kept.items()}) / number
    means = channel_sums(plan, importance) / number
    stays: NDArray[np.bool_] = (pruned < options["channel_share"]) & (means > options["channel_threshold"])
    stays |= (ranked == 0) | masks.keep_top(plan, means, 1e-9).kept
    return stays


def report_update(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report n_k |D_k|^2 of every tensor and the terms of the agreement (step 6), of the round's update D_k."""
    rule = REPORTS[options["agreement"]]

    def read(update: Params) -> Report:
        moved, examples = {name: update[name] for name in view.trainable}, len(view.targets)
        norms = {f"{NORM}{key}": value.double().pow(2).sum() for key, value in moved.items()}
        found = {} if rule is None else {"agreement": (rule(moved, view.elements, options), examples)}
        return Report(sums={"squared_norms": (norms, examples), **found})

    return LocalHooks(received=(read,))


def signs(moved: Params, held: Params, options: MethodOptions) -> Params:
    """Return sign(D_k); the agreement is |sum p_k sign(D_ki)|."""
    return {key: value.sign() for key, value in moved.items()}


def top_sets(moved: Params, held: Params, options: MethodOptions) -> Params:
    """Return the trained entries of each tensor without the `prune_share` that moved least.

    The agreement is the share of clients in whose set an entry is.
    """
    sets: Params = {}
    for key, value in moved.items():
        trained = held.get(key, torch.ones_like(value, dtype=torch.bool))
        size = int(trained.sum())
        distance = {key: torch.where(trained, value.abs(), -torch.inf)}
        sets |= elements.keep_largest(distance, size - int(options["prune_share"] * size))
    return {key: chosen.double() for key, chosen in sets.items()}


REPORTS: dict[str, Callable[[Params, Params, MethodOptions], Params] | None] = {
    "none": None,
    "sign": signs,
    "overlap": top_sets,
}


def learn_agreement(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Update the running mean of the agreement on trained entries; remember the mask, and who took part.

    Of several masks, as asynchronous rounds may have, the one that most rows were trained with is remembered.
    """
    updated, sums = dict(memory), report.contribution.sums
    for key in sums["agreement"].tensors if "agreement" in sums else ():
        held = (report.coverage[key] > 0).expand(params[key].shape)
        observed = divide(sums["agreement"].value(key).abs(), report.coverage[key])
        seen = memory.get(f"{SEEN}{key}", torch.zeros_like(held))
        old = memory.get(f"{AGREEMENT}{key}", torch.ones_like(observed))
        updated[f"{AGREEMENT}{key}"] = running_mean(old, observed, held, seen, DECAY)
        updated[f"{SEEN}{key}"] = seen | held
    if report.view.options["participants"] == "seen":
        explored, _ = explored_so_far(report.view)
        took_part = _took_part(report.view)
        took_part[report.view.clients] = True
        updated |= {f"{EXPLORED}{key}": value for key, value in explored.items()}
        updated[TOOK_PART] = torch.from_numpy(took_part)
    rows = np.bincount(report.masks.mask_of, report.view.examples)
    mask = report.masks.distinct[int(np.argmax(rows))]
    bits = {f"{mask_rules.PREFIX}{key}": torch.from_numpy(packed.copy()) for key, packed in mask.elements.items()}
    return params, {**updated, **bits, UNITS: torch.from_numpy(mask.kept.copy())}


def masked_model(plan: ChannelPlan, params: Params, memory: Params) -> Params:
    """Return w . M, M the last round's mask: what travelled is what is scored and served (step 5)."""
    if UNITS not in memory:
        return params
    bits = {key: packed.numpy() for key, packed in mask_rules.remembered(memory).items()}
    return overlap.masked(plan, Mask(memory[UNITS].numpy(), bits), params)


def update_variance(report: CohortReport) -> dict[str, float]:
    """Return the variance of the clients' updates of this round, the mean over the trained entries.

    It is (sum p_k |D_k|^2 - sum_i c_i mean_i^2) / entries; mean_i is the holders' mean of entry i.
    """
    contribution, coverage = report.contribution, report.coverage
    updates, norms = contribution.sums["update"], contribution.sums["squared_norms"]
    squares, entries = 0.0, 0
    for name in norms.tensors:
        key = name.removeprefix(NORM)
        squares += float(norms.value(name)) - float(divide(updates.value(key) ** 2, coverage[key]).sum())
        entries += int((coverage[key] > 0).expand(report.view.params[key].shape).sum())
    return {"update_variance": max(0.0, squares) / (float(report.view.examples.sum()) * max(1, entries))}


def guidance_table(memory: Params) -> Columns:
    """Return the histogram of G over all explorers: the number of entries of each tensor in each bin."""
    rows = [
        {"tensor": key, "low": index / BINS, "high": (index + 1) / BINS, "entries": int(count)}
        for key, counts in _named(HISTOGRAM, memory).items()
        for index, count in enumerate(counts.tolist())
    ]
    return {name: np.array([row[name] for row in rows]) for name in ("tensor", "low", "high", "entries")}


def _named(prefix: str, memory: Mapping[str, torch.Tensor]) -> Params:
    return {key.removeprefix(prefix): value for key, value in memory.items() if key.startswith(prefix)}
