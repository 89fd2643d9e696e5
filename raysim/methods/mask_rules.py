"""Mask rules: masks of a cohort from scores, per group, across groups, or for the whole cohort together."""

import heapq
import itertools
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.clock.timing import CohortLoad
from raysim.core.tensors import Params
from raysim.methods.estimators import ESTIMATORS, is_ready
from raysim.methods.method import CohortReport, MaskRule, RoundView
from raysim.pruning import elements, masks
from raysim.pruning.masks import CohortMasks, Mask, Scores
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import form_of


def top_of_group(view: RoundView, scores: Scores) -> list[Mask]:
    """Keep the same share of every group, the highest scores first (CA-HFP, reference algorithm, steps 1 and 4)."""
    return masks.keep_top_for_cohort(view.plan, scores, view.keep_ratios)


def top_of_model(view: RoundView, scores: Scores) -> list[Mask]:
    """Keep the same number of channels as `top`, but the best of all groups together; one stays in each group.

    A group's scores are divided by their root mean square first, so that layers of different scales can be compared
    (Molchanov et al., arXiv 1611.06440, section 2.2). Infinite scores stay what they are.
    """
    return _across_groups(view, scores, np.ones(view.plan.num_units))


def top_per_flop(view: RoundView, scores: Scores) -> list[Mask]:
    """Keep channels as `global` does, by score per FLOP of the channel."""
    return _across_groups(view, scores, unit_flops(view))


def _across_groups(view: RoundView, scores: Scores, costs: NDArray[np.float64]) -> list[Mask]:
    rows = scores if scores.ndim == 2 else scores[None]
    normalised = [_normalised(view.plan, row) for row in rows]
    ranked = [np.where(row < 0, row * costs, row / costs) for row in normalised]
    cache: dict[tuple[int, float], Mask] = {}
    chosen = []
    for index, ratio in enumerate(view.keep_ratios.tolist()):
        row = index if scores.ndim == 2 else 0
        if (row, ratio) not in cache:
            cache[row, ratio] = _keep_best(view.plan, ranked[row], ratio)
        chosen.append(cache[row, ratio])
    return chosen


def _normalised(plan: ChannelPlan, scores: Scores) -> Scores:
    normalised = scores.copy()
    for units in plan.units.values():
        finite = scores[units][np.isfinite(scores[units])]
        if len(finite):
            normalised[units] /= max(float(np.sqrt(np.mean(finite**2))), 1e-30)
    return normalised


def _keep_best(plan: ChannelPlan, scores: Scores, keep_ratio: float) -> Mask:
    total = sum(masks.num_kept(group.size, keep_ratio) for group in plan.groups)
    kept = masks.keep_top(plan, scores, 1e-9).kept.copy()
    others = np.flatnonzero(~kept)
    kept[others[np.argsort(-scores[others], kind="stable")][: total - len(plan.groups)]] = True
    return Mask(kept)


def unit_flops(view: RoundView) -> NDArray[np.float64]:
    """Return the training FLOPs per example that one unit of each group adds to the full model, `(num_units,)`."""
    flops = np.ones(view.plan.num_units)
    for units in view.plan.units.values():
        if units.stop - units.start > 1:
            without = np.ones(view.plan.num_units, dtype=np.bool_)
            without[units.start] = False
            flops[units] = view.costs.dense.train_flops - view.costs.of(Mask(without)).train_flops
    return np.maximum(flops, 1.0)


def spread_over_cohort(view: RoundView, scores: Scores) -> list[Mask]:
    """Choose masks for the whole cohort by the marginal cost of eq 14, given what other clients already prune.

    dJ_ki = -p_k g_i w_i + h_i w_i^2 / 2 (2 q_i p_k + p_k^2), summed over the channel, in the form of the
    score; greedy, cheapest first, until each client meets its budget (specification, "coverage-aware masks").
    Channels that no client has held yet have no cost: they are dropped last, those that fewest others drop first.
    Before there are estimates, the top of each group is kept.
    """
    if scores.ndim == 2 or not is_ready(view.memory):
        return top_of_group(view, scores)
    form = form_of(view.options.score)
    gradient_sum, curvature_sum = ESTIMATORS[view.options.estimator].sums(view)
    first, second = form.first_order(gradient_sum), form.second_order(curvature_sum)
    shares = view.examples / view.examples.sum()
    kept = np.ones((len(shares), view.plan.num_units), dtype=np.bool_)
    for group in view.plan.groups:
        units = view.plan.units[group.name]
        to_drop = [group.size - masks.num_kept(group.size, ratio) for ratio in view.keep_ratios]
        kept[:, units] = _spread(first[units], second[units], shares, to_drop)
    return [Mask(row) for row in kept]


def _spread(first: Scores, second: Scores, shares: NDArray[np.float64], to_drop: list[int]) -> NDArray[np.bool_]:
    """Drop the cheapest (client, channel) pair until every client has dropped its number of channels."""
    kept = np.ones((len(shares), len(first)), dtype=np.bool_)
    dropped_share, left = np.zeros(len(first)), list(to_drop)
    is_new = np.isnan(first + second)
    first, second = np.where(is_new, 0.0, first), np.where(is_new, 1.0, second)

    def cost(client: int, unit: int) -> tuple[bool, float]:
        share = shares[client]
        change = share * first[unit] + second[unit] * (2 * dropped_share[unit] * share + share**2)
        return bool(is_new[unit]), float(change)

    pairs = itertools.product([client for client, count in enumerate(to_drop) if count], range(len(first)))
    queue = [(cost(client, unit), client, unit) for client, unit in pairs]
    heapq.heapify(queue)
    while queue:
        queued, client, unit = heapq.heappop(queue)
        if left[client] == 0:
            continue
        now = cost(client, unit)
        if not kept[client, unit]:
            continue
        if now > queued:  # other clients have dropped it since
            heapq.heappush(queue, (now, client, unit))
            continue
        kept[client, unit] = False
        dropped_share[unit] += shares[client]
        left[client] -= 1
        if second[unit] < 0:  # the channel has become cheaper for the others
            for other in np.flatnonzero(left):
                heapq.heappush(queue, (cost(int(other), unit), int(other), unit))
    return kept


MASKS: dict[str, MaskRule] = {
    "top": top_of_group,
    "global": top_of_model,
    "global-per-flop": top_per_flop,
    "coverage": spread_over_cohort,
}
PREFIX = "elements/"
HELD = "mask_holders"
"""Which clients hold the current mask, `(num_clients,)`."""


def remembered(memory: Params) -> dict[str, torch.Tensor]:
    """Return the packed mask in a method's memory, by state-dict key."""
    return {key.removeprefix(PREFIX): bits for key, bits in memory.items() if key.startswith(PREFIX)}


def remember(memory: Params, kept: Params) -> Params:
    """Return the memory with a new mask, from booleans in full coordinates; clients then hold an old one."""
    new = {f"{PREFIX}{key}": torch.from_numpy(bits) for key, bits in elements.pack(kept).items()}
    if all(key in memory and torch.equal(memory[key], bits) for key, bits in new.items()):
        return {**memory, **new}
    return {**{key: value for key, value in memory.items() if key != HELD}, **new}


def remember_holders(memory: Params, report: CohortReport) -> Params:
    """Return the memory with the clients of a round added to those that hold the round's mask."""
    held = memory.get(HELD, torch.zeros(report.view.num_clients, dtype=torch.bool)).clone()
    held[report.view.clients] = True
    return {**memory, HELD: held}


def without_known_masks(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Return the load without the mask's bytes where the client has the current mask from an earlier round."""
    if HELD not in view.memory:
        return load
    known = view.memory[HELD].numpy()[view.clients]
    return replace(load, down_bytes=load.down_bytes - np.where(known, bytes_of_mask(view, chosen[0]), 0))


def bytes_of_mask(view: RoundView, mask: Mask) -> int:
    """Return the bytes of a mask of single entries; 0 if it keeps all of them."""
    pruned = sum(view.costs.pruned_elements(mask).values())
    entries = view.costs.masked_entries(mask)
    return elements.mask_bytes(entries, entries - pruned) if mask.elements else 0


def current(plan: ChannelPlan, memory: Params) -> Params:
    """Return the mask in a method's memory as booleans in full coordinates."""
    return elements.unpack({key: bits.numpy() for key, bits in remembered(memory).items()}, plan.shapes)


def single_entries(plan: ChannelPlan, kept: Params) -> Mask:
    """Return the mask of all channels and of the kept entries, from booleans in full coordinates."""
    return Mask(np.ones(plan.num_units, dtype=np.bool_), elements.pack(kept))


def shared_mask(view: RoundView, scores: Scores) -> list[Mask]:
    """Give every client the stored mask; all channels stay."""
    dense = np.ones(view.plan.num_units, dtype=np.bool_)
    mask = Mask(dense, {key: bits.numpy() for key, bits in remembered(view.memory).items()})
    return [mask] * len(view.clients)
