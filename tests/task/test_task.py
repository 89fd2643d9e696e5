"""The classification task compared with plain PyTorch, and the requirements of a task."""

import doctest
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raysim.config.metric import TASK_METRICS
from raysim.core.errors import SettingError
from raysim.methods import resolve
from raysim.task import classification
from raysim.task.table import TASKS
from raysim.task.task import Metric
from tests.methods.test_table import LOCAL

TASK = TASKS["classification"]
LOGITS = torch.randn(1203, 7, generator=torch.Generator().manual_seed(0))
CLASSES = torch.randint(0, 7, (1203,), generator=torch.Generator().manual_seed(1))


def accuracy_per_class() -> Metric:
    """Mean recall of the classes that occur: two sums for each."""

    def terms(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        own = nn.functional.one_hot(classes, logits.shape[1])
        return torch.cat([own * (logits.argmax(dim=1) == classes)[:, None], own], dim=1)

    def finish(sums: np.ndarray, rows: int) -> float:
        correct, count = np.split(sums, 2)
        assert count.sum() == rows
        return float((correct[count > 0] / count[count > 0]).mean())

    return Metric(terms, finish)


BALANCED = replace(TASK, metrics={**TASK.metrics, "balanced": accuracy_per_class()})


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_is_led_by_one_of_its_metrics_and_travels(task) -> None:
    assert TASKS[task.name] is task
    assert list(task.metrics) == [task.primary.name]
    assert task.primary == TASK_METRICS[task.name][0]
    assert pickle.loads(pickle.dumps(task)) == task


def test_classification_is_scored_by_cross_entropy_and_accuracy() -> None:
    sums = TASK.sums(LOGITS, CLASSES)
    correct = sum(int(row.argmax()) == int(label) for row, label in zip(LOGITS, CLASSES, strict=True))
    assert TASK.finished(sums) == {"accuracy": correct / 1203}
    assert TASK.primary_of(sums) == correct / 1203
    assert sums.mean_loss == pytest.approx(float(nn.functional.cross_entropy(LOGITS.double(), CLASSES)), rel=1e-12)


def test_sums_of_pieces_are_those_of_all_rows() -> None:
    whole = BALANCED.sums(LOGITS, CLASSES)
    pieces = [BALANCED.sums(LOGITS[rows], CLASSES[rows]) for rows in (slice(0, 5), slice(5, 700), slice(700, 1203))]
    together = pieces[0] + pieces[1] + pieces[2]
    assert together.count == 1203
    assert together.loss == pytest.approx(whole.loss, rel=1e-12)
    for name, terms in whole.terms.items():
        np.testing.assert_array_equal(together.terms[name], terms)
    assert BALANCED.finished(together) == BALANCED.finished(whole)


def test_rows_beyond_a_clients_own_do_not_count() -> None:
    counts = np.array([401, 1, 250])
    found = BALANCED.sums_of_each(LOGITS.view(3, 401, 7), CLASSES.view(3, 401), counts)
    for place, count in enumerate(counts.tolist()):
        rows = slice(401 * place, 401 * place + count)
        alone = BALANCED.sums(LOGITS[rows], CLASSES[rows])
        assert found[place].count == count
        assert found[place].loss == pytest.approx(alone.loss, rel=1e-12)
        for name, terms in alone.terms.items():
            np.testing.assert_array_equal(found[place].terms[name], terms)


def test_classes_that_are_not_owned_have_no_part_in_the_loss() -> None:
    owned = TASK.own_classes.owned(torch.tensor([4, 1, 4]), 7)
    assert owned.tolist() == [False, True, False, False, True, False, False]
    logits = LOGITS.clone().requires_grad_()
    loss = TASK.own_classes.loss(owned)(logits, torch.full((1203,), 4))
    loss.backward()
    assert (logits.grad.abs().sum(0) > 0).tolist() == owned.tolist()
    scores = [[float(logit) if owned[place] else 0.0 for place, logit in enumerate(row)] for row in LOGITS.tolist()]
    expected = nn.functional.cross_entropy(torch.tensor(scores), torch.full((1203,), 4))
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_a_teacher_is_matched_where_outputs_are_its_own() -> None:
    student = LOGITS.clone().requires_grad_()
    TASK.distillation(student, LOGITS).backward()
    assert float(student.grad.abs().max()) < 1e-9
    TASK.distillation(student, -LOGITS).backward()
    assert float(student.grad.abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("method", "options", "lacking"),
    [
        ("heterofl", {}, r"method.name='heterofl' is not allowed with task 'bare', which has no classes"),
        ("fjord", {"options": {"distill": True}}, r"method.options.distill=True is not allowed with task 'bare'"),
    ],
)
def test_a_method_that_needs_more_of_the_task_is_refused(method, options, lacking) -> None:
    chosen = resolve.resolve(method, options, LOCAL)
    resolve.check_task(chosen, TASK)
    with pytest.raises(SettingError, match=lacking):
        resolve.check_task(chosen, replace(TASK, name="bare", own_classes=None, distillation=None))


def test_doctests() -> None:
    assert doctest.testmod(classification) == (0, 2)
