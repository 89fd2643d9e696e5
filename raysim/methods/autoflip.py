"""AutoFLIP (arXiv 2405.10271): clients explore the loss; their displacements guide a hybrid mask."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.client.hooks import LocalHooks, Report
from raysim.client.view import ClientView
from raysim.core.tensors import Params
from raysim.methods.method import RoundView, Trainer
from raysim.methods.options import MethodOptions
from raysim.pruning import elements, masks
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import Scores, channel_sums

PREFIX = "displacement/"


def explore_losses(view: RoundView, train: Trainer) -> tuple[Params, Params]:
    """Let every client train by itself from the same weights and report its displacement (step 1)."""
    dense = Mask(np.ones(view.plan.num_units, dtype=np.bool_))
    hook = partial(explore, options=view.options)
    _, explored = train(view.clients, dense, view.options["exploration_epochs"], (hook,), view.params)
    return (explored if view.options["start"] == "explored" else view.params), view.memory


def explore(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report the displacement of every parameter; stop after `patience` epochs without a lower loss."""
    best, waited = float("inf"), 0

    def is_exhausted(loss: float) -> bool:
        nonlocal best, waited
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        return waited >= int(options["patience"])

    def finish() -> Report:
        after = dict(view.model.named_parameters())
        moved = {f"{PREFIX}{name}": after[name].detach() - view.start[name] for name in view.trainable}
        return Report(memory=moved)

    return LocalHooks(stop_after_epoch=is_exhausted, finish=(finish,))


def guided_masks(view: RoundView, scores: Scores) -> list[Mask]:
    """Give the cohort one mask from its members' displacements (steps 2 to 4)."""
    displacements = [_displacement(view.client_memory[int(client)]) for client in view.clients]
    importance = guidance(displacements, view.examples, view.options)
    total = sum(value.numel() for value in importance.values())
    pruned = int(view.options["prune_share"] * total)
    kept = elements.keep_largest(importance, total - pruned)
    units = np.ones(view.plan.num_units, dtype=np.bool_)
    if view.options["mode"] != "unstructured":
        units = kept_channels(view.plan, kept, importance, view.options)
    bits = elements.pack(kept) if view.options["mode"] != "structured" else {}
    return [Mask(units, bits)] * len(view.clients)


def guidance(displacements: Sequence[Params], examples: NDArray[np.int64], options: MethodOptions) -> Params:
    """Return G, the mean squared displacement, min-max scaled per tensor (step 2), times the agreement (step 6).

    Where all entries of a tensor moved equally far, each counts 1, or 0 if none moved.
    """
    scaled = {}
    for key in displacements[0]:
        moved = torch.stack([displacement[key].double() for displacement in displacements])
        importance = (moved**2).mean(dim=0)
        low, high = importance.min(), importance.max()
        spread = (importance - low) / (high - low) if high > low else torch.full_like(importance, float(high > 0))
        scaled[key] = spread * agreement(moved, examples, options)
    return scaled


def agreement(moved: torch.Tensor, examples: NDArray[np.int64], options: MethodOptions) -> torch.Tensor:
    """Return the agreement of clients on each entry, in [0, 1]; `moved` is `(clients, ...)`.

    `sign`: |sum p_k sign(D_ki)|; `overlap`: the share of clients in whose own top set the entry is.
    """
    if options["agreement"] == "none":
        return torch.ones_like(moved[0])
    if options["agreement"] == "sign":
        shares = torch.from_numpy(examples / examples.sum())
        return torch.as_tensor(torch.tensordot(shares, moved.sign(), dims=1)).abs()
    keep = moved[0].numel() - int(options["prune_share"] * moved[0].numel())
    own = [elements.keep_largest({"entry": client.abs()}, keep)["entry"].double() for client in moved]
    return torch.stack(own).mean(dim=0)


def kept_channels(plan: ChannelPlan, kept: Params, importance: Params, options: MethodOptions) -> NDArray[np.bool_]:
    """Drop channels most of whose weights are pruned, or whose mean G is at or under a threshold (step 4).

    The best channel of each group stays.
    """
    ones = channel_sums(plan, {key: torch.ones_like(value) for key, value in importance.items()})
    pruned = channel_sums(plan, {key: (~held).double() for key, held in kept.items()}) / ones
    means = channel_sums(plan, importance) / ones
    stays: NDArray[np.bool_] = (pruned < options["channel_share"]) & (means > options["channel_threshold"])
    return stays | masks.keep_top(plan, means, 1e-9).kept


def _displacement(memory: Mapping[str, torch.Tensor]) -> Params:
    return {key.removeprefix(PREFIX): value for key, value in memory.items() if key.startswith(PREFIX)}
