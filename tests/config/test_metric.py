"""The primary metric of the settings, and the names that a user's metric cannot have."""

import doctest
from math import inf, nan

import pytest

from raysim.config import metric
from raysim.config.metric import ACCURACY, PREFIXES, RESERVED, TASK_METRICS, PrimaryMetric, metric_in
from raysim.config.task import TaskSettings
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from tests.clocked import FRAIL, QUICK, played
from tests.conftest import settings_of


def test_doctests() -> None:
    assert doctest.testmod(metric).failed == 0


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_best_and_the_worst_are_those_of_the_direction(direction) -> None:
    chosen, values = PrimaryMetric("a", direction, -inf, inf), [2.0, nan, -1.0, 5.0]
    best, worst = (5.0, -1.0) if direction == "up" else (-1.0, 5.0)
    assert (chosen.best(values), chosen.worst(values)) == (best, worst)
    assert chosen.is_better(best, worst)
    assert not chosen.is_better(worst, best)
    assert not chosen.is_better(2.0, 2.0)
    assert chosen.is_better(worst, nan)
    assert not chosen.is_better(nan, worst)
    assert chosen.reaches(best, worst)
    assert not chosen.reaches(worst, best)
    assert chosen.reaches(2.0, 2.0)


@pytest.mark.parametrize("task", TASK_METRICS)
def test_every_metric_of_a_task_may_lead(task: str) -> None:
    assert TaskSettings(name=task).primary_metric == TASK_METRICS[task][0]
    for each in TASK_METRICS[task]:
        found = TaskSettings(name=task, primary=each.name).primary_metric
        assert found == each
        assert metric_in(found.entries) == each
    own = TaskSettings(name=task, primary="my_pkg:score", direction="down").primary_metric
    assert metric_in(own.entries) == own == PrimaryMetric("score", "down", -inf, inf)
    assert metric_in({}) == ACCURACY


def test_no_metric_of_a_user_has_the_name_of_another_column() -> None:
    given = (*QUICK, *FRAIL, "data.validation_share=0.2", "diagnostics.every=1", "rounds=1")
    _, (report,) = played(build_scenario(settings_of("ca-hfp", *given)))
    names = {name.partition("/")[0] for name in records.round_columns(report)} | {*report.clients}
    others = {name for name in names if name != ACCURACY.name and not name.startswith(PREFIXES)}
    assert others <= {*RESERVED}
    for name in ("loss", "validation_loss", "total_s"):
        with pytest.raises(ValueError, match=f"{name!r} cannot be the name of a metric"):
            TaskSettings(metrics=[f"my_pkg:{name}"])


@pytest.mark.parametrize("name", ["accuracy", "f1", "iou", "rmse", "per_class"])
def test_a_metric_of_a_user_has_no_name_of_a_tasks_own(name: str) -> None:
    """Its range would be taken for that of the task's: shares are shown in per cent."""
    with pytest.raises(ValueError, match=f"'{name}' cannot be the name of a metric"):
        TaskSettings(name="regression", primary=f"my_pkg:{name}", direction="up")
