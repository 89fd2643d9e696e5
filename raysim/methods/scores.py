"""Scores: how methods rank channels, one function each; channels with high scores are kept."""

import numpy as np
import torch

from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.methods.estimators import ESTIMATORS, is_ready
from raysim.methods.method import AfterRound, CohortReport, RoundView, ScoreRule
from raysim.pruning import masks, significance
from raysim.pruning.significance import Scores, form_of


def random_score(view: RoundView) -> Scores:
    """Score by fresh noise for each client and round."""
    return masks.noise(view.plan, view.clients, view.round, view.seed)


def index_score(view: RoundView) -> Scores:
    """Score by minus the channel's index: every client keeps the first channels (HeteroFL, arXiv 2010.01264)."""
    return significance.first_channels(view.plan)


def rolling_score(view: RoundView) -> Scores:
    """Keep a window of channels that starts at (rounds before this one) mod C and wraps.

    Source: FedRolex, arXiv 2212.01548, section 3.
    """
    sizes = [group.size for group in view.plan.groups]
    ranks = [-((np.arange(size) - (view.round - 1)) % size).astype(np.float64) for size in sizes]
    return np.concatenate(ranks or [np.zeros(0)])


def l1_score(view: RoundView) -> Scores:
    """Score by the l1 norm of the channel's filters (Li et al., arXiv 1608.08710)."""
    return significance.l1_norms(view.plan, view.params)


def change_score(view: RoundView) -> Scores:
    """Score by the l1 norm of the last change of the channel's filters in the global model; at first by noise.

    Source: the criterion |w_t - w_(t-1)| in CA-HFP's ablation (arXiv 2603.12591, Table II).
    """
    if CHANGE not in view.memory:
        return random_score(view)
    return np.asarray(view.memory[CHANGE].numpy(), dtype=np.float64)


def remember_change(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Store how much a round changed the filters of each channel, `(num_units,)`."""
    before = report.view.params
    change = {key: value - before[key] for key, value in params.items() if value.is_floating_point()}
    return params, {**memory, CHANGE: torch.from_numpy(significance.l1_norms(report.view.plan, change))}


def curvature_score(view: RoundView) -> Scores:
    """Score by CA-HFP's significance (arXiv 2603.12591, eq 15); by noise in the warm-up rounds.

    Channels that no client has held yet have no significance: they are tried first, or ranked by their l1 norms.
    """
    by_norms = view.options.unseen == "l1"
    if is_warming_up(view):
        return l1_score(view) if by_norms and view.round > view.options.warmup_rounds else random_score(view)
    gradient_sum, curvature_sum = ESTIMATORS[view.options.estimator].sums(view)
    scores = form_of(view.options.score).combine(gradient_sum, curvature_sum)
    unseen = _norms_as_scores(view, scores) if by_norms else np.inf
    return np.where(np.isnan(scores), unseen, scores)


def _norms_as_scores(view: RoundView, scores: Scores) -> Scores:
    """Return squared l1 norms, scaled so that channels with a score have the same mean in each group."""
    norms = l1_score(view) ** 2
    for units in view.plan.units.values():
        known = ~np.isnan(scores[units])
        total = norms[units][known].sum()
        norms[units] *= np.abs(scores[units][known]).sum() / total if total else 1.0
    return norms


def with_bonus(view: RoundView, scores: Scores) -> Scores:
    """Raise the scores of channels by the share of the last cohort that kept them, times `hysteresis`.

    A score below 0 stays there: the loss is estimated to fall without its channel.
    """
    if not view.options.hysteresis or "kept_share" not in view.memory or scores.ndim == 2:
        return scores
    kept_share, finite = view.memory["kept_share"].numpy(), np.isfinite(scores)
    raised = scores.copy()
    bonus = view.options.hysteresis * kept_share[finite]
    raised[finite] += np.where(scores[finite] < 0, np.minimum(bonus, 1.0), bonus) * np.abs(scores[finite])
    return raised


def is_warming_up(view: RoundView) -> bool:
    """Whether masks are still random: in the warm-up rounds, and until a curvature has been estimated."""
    return view.round <= view.options.warmup_rounds or not is_ready(view.memory)


def draw(view: RoundView, purpose: str, index: int) -> np.random.Generator:
    """Return the generator of one client of the cohort in this round."""
    return seeding.generator(view.seed, purpose, view.round, int(view.clients[index]))


CHANGE = "filter_change"
SCORES: dict[str, ScoreRule] = {"l1": l1_score, "delta_w": change_score}
"""Scores without estimates that `method.score` names; they take the place of a method's own."""
LEARNED: dict[str, AfterRound] = {"delta_w": remember_change}
"""Rules by which the server remembers of a round, by the name of the score that needs it."""
