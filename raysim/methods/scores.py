"""Scores: how methods rank channels, one function each; channels with high scores are kept."""

import numpy as np

from raysim.core import seeding
from raysim.methods.estimators import ESTIMATORS, is_ready
from raysim.methods.method import RoundView
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


def curvature_score(view: RoundView) -> Scores:
    """Score by CA-HFP's significance (arXiv 2603.12591, eq 15); by noise in the warm-up rounds."""
    if is_warming_up(view):
        return random_score(view)
    gradient_sum, curvature_sum = ESTIMATORS[view.options.estimator].sums(view)
    return form_of(view.options.score).combine(gradient_sum, curvature_sum)


def with_bonus(view: RoundView, scores: Scores) -> Scores:
    """Raise the scores of channels by the share of the last cohort that kept them, times `hysteresis`."""
    if not view.options.hysteresis or "kept_share" not in view.memory or scores.ndim == 2:
        return scores
    kept_share = np.asarray(view.memory["kept_share"].numpy())
    return scores + view.options.hysteresis * kept_share * np.abs(scores)


def is_warming_up(view: RoundView) -> bool:
    """Whether masks are still random: in the warm-up rounds, and until a curvature has been estimated."""
    return view.round <= view.options.warmup_rounds or not is_ready(view.memory)


def draw(view: RoundView, purpose: str, index: int) -> np.random.Generator:
    """Return the generator of one client of the cohort in this round."""
    return seeding.generator(view.seed, purpose, view.round, int(view.clients[index]))
