"""Score the global model after a round, where that is due."""

from dataclasses import dataclass

from raysim.client import evaluation
from raysim.core.tensors import Params
from raysim.methods import resolve as methods
from raysim.pruning.masks import Mask
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import Score, ServerState, WidthScore


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The global model as it is kept after a round, and its scores.

    Attributes:
        params: Parameters and buffers; where it was scored with static BatchNorm, with statistics estimated anew.
        score: Score on the test rows; None: it was not due.
        validation: Score on the validation rows; None: it was not due, or there are none.
        statistics_flops: FLOPs of the forward passes by which statistics were estimated anew.
        widths: Scores of its submodels, where they were due.
    """

    params: Params
    score: Score | None = None
    validation: Score | None = None
    statistics_flops: int = 0
    widths: tuple[WidthScore, ...] = ()


def evaluate(scenario: Scenario, after: ServerState, executor: Executor) -> Evaluation:
    """Score the global model where it is due; with static BatchNorm, re-estimate its statistics first."""
    if not _is_due(scenario, after):
        return Evaluation(after.params)
    served = methods.served(scenario.method, scenario.workload.plan, after.params, after.memory)
    score, validation, buffers = scores_of(scenario, served, executor)
    return Evaluation(after.params | buffers, score, validation, statistics_flops(scenario, after))


def statistics_flops(scenario: Scenario, after: ServerState) -> int:
    """Return the FLOPs of estimating the global model's statistics anew after a round; 0 where that is not due."""
    if not (_is_due(scenario, after) and _estimates_statistics(scenario)):
        return 0
    return len(scenario.statistics_rows) * scenario.costs.forward_flops


def _is_due(scenario: Scenario, after: ServerState) -> bool:
    return after.round % scenario.score_every == 0 or scenario.is_over(after)


def _estimates_statistics(scenario: Scenario) -> bool:
    return scenario.method.rules.static_norm and bool(evaluation.batch_norms(scenario.workload.model))


def scores_of(
    scenario: Scenario, served: Params, executor: Executor, mask: Mask | None = None
) -> tuple[Score, Score | None, Params]:
    """Score a served model, or its submodel of a mask.

    Returns:
        The scores on the test rows and on the validation rows (None: there are none), and the statistics of static
        BatchNorm, which were estimated first; empty: they were kept.
    """
    task, validation = scenario.workload.task, None
    buffers: Params = {}
    if _estimates_statistics(scenario):
        buffers = executor.estimate_statistics(served, scenario.statistics_rows, mask)
        served = served | buffers
    score = Score.of(task, executor.score(served, scenario.test_rows, "test", mask))
    if len(scenario.validation_rows):
        validation = Score.of(task, executor.score(served, scenario.validation_rows, "validation", mask))
    return score, validation, buffers
