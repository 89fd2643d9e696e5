"""Score the global model cut to several widths, by the masks that the method itself would choose."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysim.clock.work import Cohort
from raysim.core import seeding
from raysim.core.log import warning
from raysim.core.tensors import Params
from raysim.methods import resolve as methods
from raysim.pruning.masks import CohortMasks
from raysim.simulation.cohort import view_of
from raysim.simulation.evaluation import Evaluation, scores_of
from raysim.simulation.participants import affordable
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import Score, ServerState, WidthScore, width_name

DRAWS = 5
"""Masks of a width whose scores are averaged, where a method's masks are not the same for all clients."""
MOST = 8
"""Most widths that are scored unless the settings name them: evenly spread over those that clients train."""


def with_widths(scenario: Scenario, given: Sequence[float] | None) -> Scenario:
    """Return the scenario with the widths at which its global model is scored.

    Args:
        scenario: The run.
        given: The widths; None: those that clients can train, at most eight, at the last evaluation only.
    """
    if given is None:
        return replace(scenario, widths=default_widths(scenario), widths_at_end=True)
    wanted = sorted(set(given), reverse=True)
    if not scenario.method.cuts_by_width:
        left_out = [f"{width:g}" for width in wanted if width < 1]
        if left_out:
            warning(
                f"evaluation.widths: {', '.join(left_out)} cannot be scored, since "
                f"method.name={scenario.method.name!r} has no masks by width"
            )
        wanted = [width for width in wanted if width == 1]
    return replace(scenario, widths=tuple(wanted), widths_at_end=False)


def default_widths(scenario: Scenario) -> tuple[float, ...]:
    """Return the widths that clients can train, widest first; evenly spread ones of more than eight.

    Where the method itself chooses widths from a range, these are those of the clients' budgets.
    """
    everybody, method = np.arange(len(scenario.workload.population)), scenario.method
    budgets = affordable(scenario, everybody, 1).keep_ratios
    trained = budgets if method.chooses_widths else method.budget(budgets)
    distinct = {width_name(width): width for width in np.unique(trained[trained > 0]).tolist()}
    found = sorted(distinct.values(), reverse=True)
    chosen = np.unique(np.linspace(0, len(found) - 1, min(MOST, len(found))).round().astype(int))
    return tuple(found[index] for index in chosen)


def score_widths(
    scenario: Scenario, before: ServerState, after: ServerState, evaluated: Evaluation, executor: Executor
) -> tuple[WidthScore, ...]:
    """Score the global model at each width, where that is due.

    Channels are those that clients of this width trained in the round, so they are ranked by what the server knew
    before it; with static BatchNorm, the statistics of each submodel are estimated anew.

    Args:
        scenario: The run.
        before: The state before the round.
        after: The state after it, with its score.
        evaluated: The scores of the whole model.
        executor: Scores the submodels.
    """
    if evaluated.score is None or (scenario.widths_at_end and not scenario.is_over(after)):
        return ()
    served = methods.served(scenario.method, scenario.workload.plan, after.params, after.memory)
    found = [(width, methods.served_at(scenario.method, served, after.memory, width)) for width in scenario.widths]
    return tuple(_score_at(scenario, before, params, width, evaluated, executor) for width, params in found)


def _score_at(
    scenario: Scenario, before: ServerState, served: Params, width: float, evaluated: Evaluation, executor: Executor
) -> WidthScore:
    if width == 1:
        whole = evaluated.score, evaluated.validation
        return WidthScore(width, 1, *_figures([whole]))
    masks = masks_at(scenario, before, width)
    scores = [scores_of(scenario, served, executor, mask)[:2] for mask in masks.distinct]
    drawn = scores if len(scores) == 1 else [scores[index] for index in masks.mask_of.tolist()]
    return WidthScore(width, len(scores), *_figures(drawn))


def _figures(drawn: Sequence[tuple[Score | None, Score | None]]) -> tuple[float, float, float | None]:
    """Return the means over masks of the test score, the test loss, and the score on the validation rows."""
    tests = [score for score, _ in drawn if score is not None]
    validations = [score.primary for _, score in drawn if score is not None]
    primary, loss = _mean([score.primary for score in tests]), _mean([score.loss for score in tests])
    return primary, loss, _mean(validations) if validations else None


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else float(np.mean(values))


def masks_at(scenario: Scenario, before: ServerState, width: float) -> CohortMasks:
    """Return the masks that five equal clients of one width would have had in the round after a state.

    Methods with one ranking for all give all of them the same mask; draws are not those of the round's own clients.
    """
    registered = len(scenario.workload.population)
    found = []
    for start in range(0, DRAWS, registered):
        cohort = _cohort_of(np.arange(min(registered, DRAWS - start)), width, before.round + 1, scenario)
        seed = seeding.derive_seed(scenario.workload.seed, "evaluated masks", before.round + 1, start)
        view = replace(view_of(scenario, before, cohort), seed=seed)
        scores, _ = methods.rank(scenario.method, view)
        found.append(methods.masks_of_width(scenario.method, view, scores))
    return CohortMasks.joined(found)


def _cohort_of(clients: NDArray[np.int64], width: float, round: int, scenario: Scenario) -> Cohort:
    size = len(clients)
    widths, ones = np.full(size, width), np.ones(size, np.int64)
    epochs = np.full(size, scenario.workload.local.epochs)
    return Cohort(round, clients, widths, widths, np.full(size, "evaluation"), ones, epochs)
