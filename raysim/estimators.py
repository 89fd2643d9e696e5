"""Gradient and curvature of the loss, estimated from what clients report anyway; the table of estimators."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.aggregation import divide
from raysim.client_step import Contribution
from raysim.pruning.coverage import Coverage
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import FORMS, Scores, gradient_and_curvature_sums, running_mean
from raysim.types import Mask, Params


@dataclass(frozen=True, slots=True, eq=False)
class CohortReport:
    """What an estimator learns from after a round.

    Attributes:
        contribution: What the clients sent.
        masks: Mask of each client, in the order of the contribution's rows.
        examples: Training examples of each client, `(cohort,)`.
        coverage: Examples behind each entry.
    """

    contribution: Contribution
    masks: list[Mask]
    examples: NDArray[np.int64]
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Estimator:
    """How running estimates are updated, and turned into each channel's sums of g w and h w^2."""

    update: Callable[[Params, CohortReport, float, float], Params]
    sums: Callable[[Params, Params, ChannelPlan, str, bool], Scores]
    clients_report_sums: bool
    needs_plain_sgd: bool


def update_fisher(memory: Params, report: CohortReport, decay: float, scale: float) -> Params:
    """Update running means of the channel sums that clients computed from their minibatch gradients.

    Holders are averaged with their example counts, channel by channel.
    """
    kept = np.stack([mask.kept for mask in report.masks])
    weights = kept * report.examples[:, None].astype(np.float64)
    holders = torch.from_numpy(weights.sum(axis=0))
    observed = torch.from_numpy((report.contribution.channel_sums * weights[:, None]).sum(axis=0))
    old = memory.get("channel_sums", torch.zeros_like(observed))
    seen = memory.get("seen", torch.zeros(kept.shape[1], dtype=torch.bool))
    mean = running_mean(old, divide(observed, holders), holders > 0, seen, decay)
    return {**memory, "channel_sums": mean, "seen": seen | (holders > 0)}


def fisher_sums(memory: Params, params: Params, plan: ChannelPlan, form: str, consumers: bool) -> Scores:
    """Return the running means themselves: they already are sums per channel."""
    return np.asarray(memory["channel_sums"].numpy(), dtype=np.float64)


def update_variation(memory: Params, report: CohortReport, decay: float, scale: float) -> Params:
    """Update running means of g = sum p_k m_k g_k / c and h = scale x sum p_k m_k g_k^2 / c, entry by entry.

    g_k = -D_k / (rate x a_n) is client k's pseudo-gradient, its local variation.
    """
    updated = dict(memory)
    first, second = report.contribution.sums["gradient"], report.contribution.sums["squared_gradient"]
    for key in first.totals:
        covered = report.coverage[key]
        seen = memory.get(f"seen/{key}", torch.zeros_like(covered, dtype=torch.bool))
        for name, total, factor in (("gradient", first, 1.0), ("curvature", second, scale)):
            observed = factor * divide(total.value(key), covered)
            old = memory.get(f"{name}/{key}", torch.zeros_like(observed))
            updated[f"{name}/{key}"] = running_mean(old, observed, covered > 0, seen, decay)
        updated[f"seen/{key}"] = seen | (covered > 0)
    return updated


def variation_sums(memory: Params, params: Params, plan: ChannelPlan, form: str, consumers: bool) -> Scores:
    """Return each channel's sums at the current weights."""

    def estimates(name: str) -> Params:
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in memory.items() if key.startswith(prefix)}

    return gradient_and_curvature_sums(
        plan, FORMS[form], params, estimates("gradient"), estimates("curvature"), consumers=consumers
    )


ESTIMATORS: dict[str, Estimator] = {
    "fisher": Estimator(update_fisher, fisher_sums, clients_report_sums=True, needs_plain_sgd=False),
    "variation": Estimator(update_variation, variation_sums, clients_report_sums=False, needs_plain_sgd=True),
}
