"""Diagnostics: a method's own predictions compared with measurements, at a round's start weights.

All is computed in float64 and eval mode on the full model with dropped entries at zero, with the running
statistics of the model and the task's plain loss. p_k are shares of the cohort's training rows; m_k is the mask that
a client downloads, or sends back where it cuts its submodel itself. Nothing is kept between rounds, and training is
not affected.
Source: CA-HFP, arXiv 2603.12591; specification, "diagnostics per round".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan

import numpy as np
from numpy.typing import NDArray

from raysim.clock.work import Cohort
from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.methods import resolve as methods
from raysim.methods.estimators import estimates
from raysim.pruning.masks import CohortMasks, Mask, Scores
from raysim.pruning.overlap import masked, mean_change, mean_overlap, pruned_share, share_of_each
from raysim.pruning.plan import ChannelPlan
from raysim.simulation import convergence, loss_surface
from raysim.simulation.cohort import choose_masks, view_of
from raysim.simulation.loss_surface import LossSurface, dot, squared_norm
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState
from raysim.simulation.transition import initial_params

ROWS = 1000
"""Most test rows that predictions are compared on; drawn once for a run."""
FEW_ROWS = 256
"""Most of these rows where many passes are needed: channels one by one, and the largest curvature."""
CLIENTS = 32
"""Most clients of a cohort that are examined one by one; drawn for the round."""
CHANNELS = 32
"""Most channels that are left out one by one; drawn once for a run."""
DRAWS = 4
"""Random vectors for the diagonal of the Hessian."""
POWER_ITERATIONS = 10
"""Hessian-vector products of the largest curvature."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The subject of a diagnosis: a cohort, its masks, and the loss surface at the start weights.

    Attributes:
        scenario: The run.
        cohort: The clients that took part.
        indices: Those of them that are examined one by one.
        shares: Their p_k, adding up to 1, `(clients,)`.
        masks: Their m_k.
        error: e_i = q_i w_i, q_i = sum p_k (1 - m_ki) over the whole cohort: the loss of weight by zero-filling.
        removals: By name, a and z of a prediction - sum g_i a_i + 1/2 sum h_i z_i^2.
        weights: Start weights w and buffers, float64.
        surface: The loss F on held-out rows.
    """

    scenario: Scenario
    cohort: Cohort
    indices: NDArray[np.int64]
    shares: NDArray[np.float64]
    masks: CohortMasks
    error: Params
    removals: dict[str, tuple[Params, Params]]
    weights: Params
    surface: LossSurface

    @property
    def plan(self) -> ChannelPlan:
        """The model's channel groups."""
        return self.scenario.workload.plan

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a fresh generator for this round."""
        return seeding.generator(self.scenario.workload.seed, purpose, self.cohort.round)


def is_due(scenario: Scenario, round: int) -> bool:
    """Whether a round is diagnosed."""
    return scenario.diagnose_every > 0 and round % scenario.diagnose_every == 0


def diagnose(
    scenario: Scenario, before: ServerState, after: ServerState, cohort: Cohort, masks: CohortMasks
) -> dict[str, float]:
    """Return the diagnostics of a round by name; undefined ones are left out.

    Args:
        scenario: The run.
        before: The state the round started from.
        after: The state it ended with.
        cohort: The clients that took part.
        masks: Masks of the submodels that each client sends back.
    """
    with seeding.torch_seeded(scenario.workload.seed, "diagnosis", cohort.round):
        subject = _subject(scenario, before, cohort, masks)
        gradient = subject.surface.gradient(subject.weights)
        found = (
            _loss_changes(subject, gradient)
            | _estimated_changes(subject, before.memory)
            | _ranking(subject, before)
            | _masks(subject, after)
            | _theorem(subject, gradient)
        )
    return {name: value for name, value in found.items() if isfinite(value)}


def _subject(scenario: Scenario, before: ServerState, cohort: Cohort, masks: CohortMasks) -> Subject:
    workload, plan = scenario.workload, scenario.workload.plan
    rng = seeding.generator(workload.seed, "diagnosed clients", cohort.round)
    indices = np.sort(rng.permutation(len(masks))[:CLIENTS])
    examples, examined = cohort.examples[indices], masks.take(indices)
    rows = seeding.generator(workload.seed, "diagnosed rows").permutation(len(workload.data.test_targets))[:ROWS]
    surface = loss_surface.of_model(workload.task, workload.model, *workload.data.test_rows(rows))
    weights = loss_surface.in_float64(before.params)
    error = _times(pruned_share(plan, masks, cohort.examples), weights, surface.names)
    dropped = pruned_share(plan, examined, examples)
    by_root = _times({name: share.sqrt() for name, share in dropped.items()}, weights, surface.names)
    # sum_k p_k sum_i (1 - m_ki) (...) is sum_i q_i (...), q over the examined clients
    removals = {"zero_fill": (error, error), "submodels": (_times(dropped, weights, surface.names), by_root)}
    return Subject(scenario, cohort, indices, examples / examples.sum(), examined, error, removals, weights, surface)


def _times(factors: Params, weights: Params, names: Sequence[str]) -> Params:
    return {name: factors[name] * weights[name] for name in names}


def _loss_changes(subject: Subject, gradient: Params) -> dict[str, float]:
    """Return the change of the held-out loss by zero-filling and by the clients' masks, predicted and measured.

    `zero_fill`: F(w - e) - F(w) against - sum q_i g_i w_i + 1/2 sum q_i^2 h_i w_i^2 (eq 14), and the same with
    the whole Hessian; running statistics do not change. `submodels`: sum p_k [F(m_k w) - F(w)] against
    sum_k p_k sum_i (1 - m_ki) (-g_i w_i + h_i w_i^2 / 2).
    """
    surface, weights, error = subject.surface, subject.weights, subject.error
    roots = [root for _, root in subject.removals.values()]
    rng = subject.generator("diagnosed curvature")
    diagonal = loss_surface.diagonal_sums(surface, weights, roots, DRAWS, rng)
    predicted = {
        f"predicted_{name}": float(second / 2 - dot(linear, gradient))
        for (name, (linear, _)), second in zip(subject.removals.items(), diagonal, strict=True)
    }
    (whole,) = surface.curvatures(weights, [error])
    loss = surface.value(weights)
    filled = {**weights, **{name: weights[name] - removed for name, removed in error.items()}}
    changes = [
        share * (surface.value(masked(subject.plan, mask, weights)) - loss)
        for mask, share in share_of_each(subject.masks, subject.shares)
        if not mask.is_dense
    ]
    return {
        **predicted,
        "predicted_zero_fill_full_hessian": float(whole / 2 - dot(error, gradient)),
        "measured_zero_fill": surface.value(filled) - loss,
        "measured_submodels": float(sum(changes)),
        "zero_fill_error": squared_norm(error),
    }


def _estimated_changes(subject: Subject, memory: Params) -> dict[str, float]:
    """Return the same predictions from the method's own estimates, where it keeps them entry by entry.

    Entries that no client has held yet count as zero.
    """
    gradient, curvature = estimates(memory, "gradient"), estimates(memory, "curvature")
    if not gradient:
        return {}
    found = {}
    for name, (linear, root) in subject.removals.items():
        squares = {key: root[key] ** 2 for key in curvature}
        found[f"estimated_{name}"] = float(dot(squares, curvature) / 2 - dot(gradient, linear))
    return found


def _ranking(subject: Subject, before: ServerState) -> dict[str, float]:
    """Return Spearman's correlation of the method's channel scores with the leave-one-channel-out loss.

    Over some channels of the whole model, and within its groups, where masks are chosen; the mean over the clients
    where each has scores of its own.
    """
    scenario, plan = subject.scenario, subject.plan
    rng = seeding.generator(scenario.workload.seed, "diagnosed channels")
    channels = np.sort(rng.permutation(plan.num_units)[:CHANNELS])
    scores, _ = methods.rank(scenario.method, view_of(scenario, before, subject.cohort))
    costs = leave_one_out(subject.surface.first(FEW_ROWS), plan, subject.weights, channels)
    groups = np.repeat(np.arange(len(plan.groups)), [group.size for group in plan.groups])[channels]
    rows, shares = (scores[None], np.ones(1)) if scores.ndim == 1 else (scores[subject.indices], subject.shares)
    pooled = [rank_correlation(row[channels], costs) for row in rows]
    by_group = [correlation_in_groups(row[channels], costs, groups) for row in rows]
    return {
        "score_rank_correlation": float(shares @ pooled),
        "score_rank_correlation_in_groups": float(shares @ by_group),
    }


def leave_one_out(surface: LossSurface, plan: ChannelPlan, weights: Params, channels: NDArray[np.int64]) -> Scores:
    """Return F(w without a channel) - F(w) for some channels, `(len(channels),)`."""
    loss, changes = surface.value(weights), []
    for channel in channels.tolist():
        kept = np.arange(plan.num_units) != channel
        changes.append(surface.value(masked(plan, Mask(kept), weights)) - loss)
    return np.array(changes)


def rank_correlation(first: Scores, second: Scores) -> float:
    """Return Spearman's rank correlation, equal values sharing their mean rank; NaN where one is constant.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    one, other = _centred_ranks(first), _centred_ranks(second)
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale else nan


def _centred_ranks(values: Scores) -> Scores:
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count + 1) / 2)[inverse]
    return np.asarray(ranks - (len(values) - 1) / 2, dtype=np.float64)


def correlation_in_groups(first: Scores, second: Scores, groups: NDArray[np.int64]) -> float:
    """Return the mean rank correlation within groups, each weighted with its members less one; NaN without any."""
    total, weight = 0.0, 0
    for group in np.unique(groups):
        members = groups == group
        found = rank_correlation(first[members], second[members])
        if isfinite(found):
            total += (int(members.sum()) - 1) * found
            weight += int(members.sum()) - 1
    return total / weight if weight else nan


def _masks(subject: Subject, after: ServerState) -> dict[str, float]:
    """Return the overlap of the clients' masks, and how much they would change if the cohort took part again.

    `mask_overlap`: mean Jaccard index over pairs of clients. `mask_churn`: mean over the clients of 1 - the Jaccard
    index of a client's mask and the one it would get in the next round, with the same budget; not defined where
    clients cut their submodels themselves.
    """
    scenario, cohort, plan = subject.scenario, subject.cohort, subject.plan
    found = {"mask_overlap": mean_overlap(plan, subject.masks) if len(subject.masks) > 1 else nan}
    if scenario.method.rules.choose_locally is None:
        again, _ = choose_masks(scenario, view_of(scenario, after, replace(cohort, round=cohort.round + 1)))
        theirs = [again[index] for index in subject.indices]
        found["mask_churn"] = mean_change(plan, subject.masks, theirs, subject.shares)
    return found


def _theorem(subject: Subject, gradient: Params) -> dict[str, float]:
    """Return the terms of Theorem 1 as they are in this round, and both bounds on the mean of ||grad F||^2.

    F is the held-out loss, F* = 0, F0 before round 1, T the number of rounds so far. L is
    estimated by power iteration, so from below; sigma^2 and zeta^2 are means over clients at w, not least upper
    bounds; this round's values stand for means over the rounds.
    """
    workload, cohort = subject.scenario.workload, subject.cohort
    smoothness = loss_surface.largest_curvature(
        subject.surface.first(FEW_ROWS), subject.weights, POWER_ITERATIONS, subject.generator("diagnosed smoothness")
    )
    variance, dissimilarity = convergence.gradient_spread(
        workload, subject.surface, subject.weights, cohort.clients[subject.indices], subject.shares, cohort.round
    )
    steps, step_size = convergence.steps_and_size(workload.local, cohort.round, cohort.epochs, cohort.examples)
    start_loss = subject.surface.value(loss_surface.in_float64(initial_params(subject.scenario)))
    spread, error = variance + dissimilarity, squared_norm(subject.error)
    printed, lemma = convergence.bounds(start_loss, steps, step_size, cohort.round, smoothness, spread, error)
    return {
        "gradient_squared_norm": squared_norm(gradient),
        "gradient_variance": variance,
        "gradient_dissimilarity": dissimilarity,
        "smoothness": smoothness,
        "bound_printed": printed,
        "bound_lemma1": lemma,
    }
