"""Mask rules: masks of a cohort from scores, per group, across groups, or for the whole cohort together."""

import heapq
import itertools

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.tensors import Params
from raysim.methods.estimators import ESTIMATORS
from raysim.methods.method import MaskRule, RoundView
from raysim.pruning import elements, masks
from raysim.pruning.masks import Mask, Scores
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import form_of


def top_of_group(view: RoundView, scores: Scores) -> list[Mask]:
    """Keep the same share of every group, the highest scores first (CA-HFP, reference algorithm, steps 1 and 4)."""
    return masks.keep_top_for_cohort(view.plan, scores, view.keep_ratios)


def top_of_model(view: RoundView, scores: Scores) -> list[Mask]:
    """Keep the same number of channels as `top`, but the best of all groups together; one stays in each group.

    A group's scores are divided by their root mean square first, so that layers of different scales can be compared
    (Molchanov et al., arXiv 1611.06440, section 2.2).
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
        normalised[units] /= max(float(np.sqrt(np.mean(scores[units] ** 2))), 1e-30)
    return normalised


def _keep_best(plan: ChannelPlan, scores: Scores, keep_ratio: float) -> Mask:
    total = sum(masks.num_kept(group.size, keep_ratio) for group in plan.groups)
    kept = masks.keep_top(plan, scores, 1e-9).kept.copy()
    others = np.argsort(np.where(kept, np.inf, -scores), kind="stable")
    kept[others[: total - len(plan.groups)]] = True
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
    """
    if scores.ndim == 2:
        return top_of_group(view, scores)
    form = form_of(view.options.score)
    gradient_sum, curvature_sum = ESTIMATORS[view.options.estimator].sums(view)
    first, second = form.gradient_factor * gradient_sum, form.curvature_factor * curvature_sum
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

    def cost(client: int, unit: int) -> float:
        share = shares[client]
        return float(share * first[unit] + second[unit] * (2 * dropped_share[unit] * share + share**2))

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


def remembered(memory: Params) -> dict[str, torch.Tensor]:
    """Return the packed mask in a method's memory, by state-dict key."""
    return {key.removeprefix(PREFIX): bits for key, bits in memory.items() if key.startswith(PREFIX)}


def remember(memory: Params, kept: Params) -> Params:
    """Return the memory with a new mask, from booleans in full coordinates."""
    return {**memory, **{f"{PREFIX}{key}": torch.from_numpy(bits) for key, bits in elements.pack(kept).items()}}


def current(plan: ChannelPlan, memory: Params) -> Params:
    """Return the mask in a method's memory as booleans in full coordinates."""
    return elements.unpack({key: bits.numpy() for key, bits in remembered(memory).items()}, plan.shapes)


def shared_mask(view: RoundView, scores: Scores) -> list[Mask]:
    """Give every client the stored mask; all channels stay."""
    dense = np.ones(view.plan.num_units, dtype=np.bool_)
    mask = Mask(dense, {key: bits.numpy() for key, bits in remembered(view.memory).items()})
    return [mask] * len(view.clients)
