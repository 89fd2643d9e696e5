"""Regression and several labels: losses and metrics are those of the formulas and of scikit-learn."""

import doctest
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn import functional

from raysim.core.errors import SettingError
from raysim.task import numbers, positions
from raysim.task.classification import with_training_loss
from raysim.task.numbers import MULTILABEL, REGRESSION
from raysim.task.own import with_metrics
from raysim.task.task import ScoreSums, Task

GENERATOR = torch.Generator().manual_seed(0)
FOUND = torch.randn(120, 3, generator=GENERATOR)
NUMBERS = FOUND + 100 + torch.randn(120, 3, generator=GENERATOR)
LABELS = (torch.randn(120, 3, generator=GENERATOR) > 0.4).long()


def all_metrics(task: Task) -> Task:
    others = [name for name in task.known if name != task.primary.name]
    return with_metrics(task, others, None, task.primary, 0, of_clients=False)


def in_pieces(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[ScoreSums, dict[str, float]]:
    pieces = [task.sums(outputs[rows], targets[rows], True) for rows in (slice(0, 1), slice(1, 50), slice(50, None))]
    total = pieces[0] + pieces[1] + pieces[2]
    return total, task.finished(total) | dict(task.further_of(total))


@pytest.mark.parametrize("shape", ["one", "column", "several"])
def test_regression_is_scored_as_by_scikit_learn(shape: str) -> None:
    outputs = FOUND + 100 if shape == "several" else FOUND[:, :1] + 100
    targets = {"one": NUMBERS[:, 0], "column": NUMBERS[:, :1], "several": NUMBERS}[shape]
    sums, found = in_pieces(all_metrics(REGRESSION), outputs, targets)
    actual, predicted = targets.double().reshape(120, -1).numpy(), outputs.double().numpy()
    squared = sklearn_metrics.mean_squared_error(actual, predicted)
    assert found["rmse"] == pytest.approx(squared**0.5, rel=1e-12)
    assert found["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(actual, predicted), rel=1e-12)
    assert found["r2"] == pytest.approx(sklearn_metrics.r2_score(actual, predicted), rel=1e-9)
    assert sums.mean_loss == pytest.approx(squared, rel=1e-12)
    expected = functional.mse_loss(outputs.reshape(120, -1), targets.reshape(120, -1))
    torch.testing.assert_close(REGRESSION.loss(outputs, targets), expected)
    torch.testing.assert_close(REGRESSION.loss(outputs, targets, reduction="none").mean(), expected)


def test_r2_of_constant_targets_is_that_of_scikit_learn() -> None:
    task, constant = all_metrics(REGRESSION), torch.full((120,), 0.5)
    for outputs in (FOUND[:, 0], constant):
        _, found = in_pieces(task, outputs, constant)
        expected = sklearn_metrics.r2_score(constant.numpy(), outputs.numpy())
        assert found["r2"] == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(task.further_of(task.sums(FOUND[:1, 0], NUMBERS[:1, 0], True))["r2"])


def test_numbers_may_be_whole_and_outputs_half_as_precise() -> None:
    whole = torch.arange(120)
    assert REGRESSION.sums(FOUND[:, :1], whole).loss == REGRESSION.sums(FOUND[:, :1], whole.float()).loss
    half = FOUND[:, 0].to(torch.bfloat16)
    loss = REGRESSION.loss(half, NUMBERS[:, 0])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, functional.mse_loss(half.float(), NUMBERS[:, 0]))
    label_loss = MULTILABEL.loss(FOUND.to(torch.bfloat16), LABELS)
    assert label_loss.dtype == torch.float32


def test_labels_are_scored_as_by_scikit_learn() -> None:
    sums, found = in_pieces(all_metrics(MULTILABEL), FOUND, LABELS)
    actual, predicted = LABELS.numpy(), (FOUND > 0).long().numpy()
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(actual, predicted, average="micro"), rel=1e-12)
    assert found["subset_accuracy"] == sklearn_metrics.accuracy_score(actual, predicted)
    expected = functional.binary_cross_entropy_with_logits(FOUND.double(), LABELS.double())
    assert sums.mean_loss == pytest.approx(float(expected), rel=1e-12)
    torch.testing.assert_close(MULTILABEL.loss(FOUND, LABELS).double(), expected, rtol=1e-5, atol=0)
    nothing = MULTILABEL.sums(torch.full((4, 3), -1.0), torch.zeros(4, 3))
    assert MULTILABEL.primary_of(nothing) == 0


@pytest.mark.parametrize("task", [REGRESSION, MULTILABEL], ids=lambda task: task.name)
def test_clients_are_scored_together_as_alone(task: Task) -> None:
    targets = {"regression": NUMBERS, "multilabel": LABELS}[task.name]
    counts = np.array([40, 1, 25])
    for place, found in enumerate(task.sums_of_each(FOUND.view(3, 40, 3), targets.view(3, 40, 3), counts)):
        rows = slice(40 * place, 40 * place + int(counts[place]))
        alone = task.sums(FOUND[rows], targets[rows])
        assert (found.count, found.loss) == (alone.count, pytest.approx(alone.loss, rel=1e-12))
        assert task.finished(found) == pytest.approx(task.finished(alone))


def test_what_does_not_fit_is_named() -> None:
    assert REGRESSION.outputs(FOUND, NUMBERS[:, 0]) == "numbers (120, 1)"
    assert REGRESSION.outputs(FOUND[:, :1], NUMBERS[:, 0]) is None
    assert MULTILABEL.outputs(FOUND, LABELS) is None
    assert MULTILABEL.outputs(FOUND[:, :2], LABELS) == "logits (120, 3)"
    for task in (REGRESSION, MULTILABEL):
        with pytest.raises(SettingError, match=f"is not allowed with task '{task.name}', which has no classes"):
            with_training_loss(task, 0.1, None)


def test_doctests() -> None:
    assert doctest.testmod(numbers).failed == 0
    assert doctest.testmod(positions).failed == 0
