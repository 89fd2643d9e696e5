"""Masks from scores: which units of each group a client keeps."""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from raysim import seeding
from raysim.pruning.groups import ChannelGroups
from raysim.types import Mask

Scores = NDArray[np.float64]


def num_kept(size: int, keep_ratio: float) -> int:
    """Return how many of a group's units stay: at least one (CA-HFP, reference algorithm, step 1).

    >>> [num_kept(10, ratio) for ratio in (0.01, 0.25, 0.3, 1.0)]
    [1, 3, 3, 10]
    """
    return max(1, ceil(keep_ratio * size - 1e-9))


def keep_top(plan: ChannelGroups, scores: Scores, keep_ratio: float) -> Mask:
    """Keep the highest-scored units of each group; of equal scores the first.

    Args:
        plan: The model's channel groups.
        scores: `(num_units,)`.
        keep_ratio: Share of each group's units to keep, in (0, 1].
    """
    kept = np.zeros(plan.num_units, dtype=np.bool_)
    for group in plan.groups:
        units = plan.units[group.name]
        best = np.argsort(-scores[units], kind="stable")[: num_kept(group.size, keep_ratio)]
        kept[units.start + best] = True
    return Mask(kept)


def keep_top_for_cohort(plan: ChannelGroups, scores: Scores, keep_ratios: NDArray[np.float64]) -> list[Mask]:
    """Return the mask of each client; clients with equal scores and ratio share one object.

    Args:
        plan: The model's channel groups.
        scores: One shared ranking `(num_units,)` or one per client `(cohort, num_units)`.
        keep_ratios: `(cohort,)`.
    """
    if scores.ndim == 2:
        return [keep_top(plan, own, ratio) for own, ratio in zip(scores, keep_ratios, strict=True)]
    shared = {ratio: keep_top(plan, scores, ratio) for ratio in sorted(set(keep_ratios.tolist()))}
    return [shared[ratio] for ratio in keep_ratios.tolist()]


def noise(plan: ChannelGroups, clients: NDArray[np.int64], round: int, seed: int) -> Scores:
    """Return fresh random scores for each client and round, `(cohort, num_units)`."""
    rows = [seeding.generator(seed, "random masks", round, int(client)).random(plan.num_units) for client in clients]
    return np.stack(rows)
