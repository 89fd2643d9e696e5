"""A user's own loss and metrics: what they compute, and what is refused before any training."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from raysim.config.metric import TASK_METRICS, PrimaryMetric
from raysim.core.errors import SettingError
from raysim.simulation.build import build_scenario
from raysim.task.classification import CLASSIFICATION
from raysim.task.own import with_metrics, with_own_loss
from raysim.task.positions import IGNORED, TOKEN_CLASSIFICATION
from raysim.task.table import TASKS
from tests.clocked import QUICK, played
from tests.conftest import settings_of, tiny_settings
from tests.task import own_parts

HERE = "tests.task.own_parts"
LOGITS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 3


def test_a_metric_is_the_mean_of_its_numbers_or_what_its_record_finishes() -> None:
    metric = PrimaryMetric("brier", "down", -np.inf, np.inf)
    others = [f"{HERE}:hits", f"{HERE}:logit_spread"]
    task = with_metrics(CLASSIFICATION, others, f"{HERE}:brier", metric, 3, of_clients=True)
    pieces = [task.sums(LOGITS[rows], CLASSES[rows], True) for rows in (slice(0, 7), slice(7, 40))]
    total = pieces[0] + pieces[1]
    assert task.primary_of(total) == pytest.approx(float(own_parts.brier(LOGITS, CLASSES).double().mean()), rel=1e-7)
    found = task.further_of(total)
    assert found["hits"] == CLASSIFICATION.primary_of(CLASSIFICATION.sums(LOGITS, CLASSES))
    values = LOGITS.double()
    spread = float(values.square().sum() / 40 - (values.sum() / 40) ** 2)
    assert found["logit_spread"] == pytest.approx(spread, rel=1e-12)
    assert task.of_clients == ("hits", "logit_spread")


def test_a_metric_of_a_task_with_positions_is_a_mean_over_rows() -> None:
    targets = torch.tensor([[1, IGNORED], [0, 2], [IGNORED, IGNORED]])
    task = with_metrics(TOKEN_CLASSIFICATION, [f"{HERE}:share"], None, TOKEN_CLASSIFICATION.primary, 3, False)
    assert task.further_of(task.sums(torch.zeros(3, 2, 3), targets, True)) == {"share": 0.5}


@pytest.mark.parametrize("path", [f"{HERE}:focal", "torch.nn.functional:multi_margin_loss"])
def test_a_loss_is_scored_and_minimised(path: str) -> None:
    task = with_own_loss(CLASSIFICATION, path)
    each = own_parts.focal(LOGITS, CLASSES)
    if "torch" in path:
        each = functional.multi_margin_loss(LOGITS, CLASSES, reduction="none")
    torch.testing.assert_close(task.minimised(LOGITS, CLASSES), each.mean())
    torch.testing.assert_close(task.loss(LOGITS, CLASSES, reduction="none"), each)
    assert task.sums(LOGITS, CLASSES).mean_loss == pytest.approx(float(each.mean()), rel=1e-5)
    assert pickle.loads(pickle.dumps(task)).sums(LOGITS, CLASSES).loss == task.sums(LOGITS, CLASSES).loss


def test_a_loss_of_positions_counts_those_that_count() -> None:
    task = with_own_loss(TOKEN_CLASSIFICATION, f"{HERE}:squared")
    outputs, targets = torch.ones(2, 2, 3), torch.tensor([[1, IGNORED], [0, 3]])
    assert task.loss(outputs, targets).item() == pytest.approx(5 / 3)
    assert task.sums(outputs, targets).mean_loss == pytest.approx(5 / 3)


def test_a_run_trains_with_it_and_its_clients_train_alone() -> None:
    shared = (
        *QUICK,
        "rounds=1",
        "selection.clients_per_round=6",
        "method.name=fedavg",
        "model.name=mlp",
        "model.options={hidden: [8]}",
    )
    plain, own = (build_scenario(tiny_settings(*shared, *more)) for more in ((), (f"task.loss={HERE}:focal",)))
    assert (plain.pack_size > 1, own.pack_size) == (True, 1)
    (before, _), (after, _) = played(plain), played(own)
    assert any(not torch.equal(before.params[key], after.params[key]) for key in before.params)
    with pytest.raises(SettingError, match=r"training\.pack=2 is not allowed: .* since task.loss is your own"):
        build_scenario(tiny_settings(*shared, f"task.loss={HERE}:focal", "training.pack=2"))


REFUSED = {
    "task.name=clasification": "task.name='clasification' is not allowed; allowed: .*nearest: 'classification'",
    "task.name=segmentation": r"data.name='digits': train_targets of int64 \(1437,\) are not allowed with "
    r"task.name='segmentation'; allowed: whole numbers .*; tasks that fit: classification, regression",
    "task.name=multilabel": r"with task.name='multilabel'; allowed: 0 and 1, \(rows, labels\)",
    "task.name=regression": "data.partition.name='dirichlet' is not allowed with task.name='regression'",
    "task.metrics=[rmse]": "task: metrics='rmse' is no metric of task 'classification'; known: ",
    "task.metrics=[acuracy]": "known: accuracy, ",
    "task.metrics=[accuracy]": "task: metrics='accuracy' is the primary metric already; allowed: others",
    "task.primary=per_class": "primary='per_class' is not allowed: it is many numbers; allowed: one number",
    "task.primary=macro_f2": "task: primary='macro_f2' is no metric of task 'classification'; known: macro_f1, ",
    f"task.primary={HERE}:brier": f"direction is missing: primary='{HERE}:brier' is your own; allowed: up",
    "task.direction=down": "direction='down' has no effect: that of 'accuracy' is known",
    f"task.metrics=[{HERE}:summed]": rf"task.metrics='{HERE}:summed' returns a tensor \(\); allowed: a tensor \(2,\)",
    f"task.metrics=[{HERE}:failing]": f"task.metrics='{HERE}:failing' fails: RuntimeError: no such metric",
    f"task.metrics=[{HERE}:number]": "is of type int; allowed: a function of outputs and targets",
    f"task.metrics=[{HERE}:none]": "has no 'none'",
    f"task.metrics=[{HERE}:brier, {HERE}:brier]": "'brier' is given more than once",
    "task.metrics=['numpy:round']": "'round' cannot be the name of a metric",
    "task.loss=focal": "task: loss='focal' is not allowed; allowed: package.module:name, or null",
    f"task.loss={HERE}:summed": rf"task.loss='{HERE}:summed' returns a tensor \(\); allowed: a tensor \(2,\)",
    "stop.primary=1.5": r"stop.primary=1.5 is not allowed: it is a value of 'accuracy'; allowed: in \(0, 1\]",
    "evaluation.targets=[0.5, 0]": "evaluation.targets.1=0 is not allowed: it is a value of 'accuracy'; allowed: in ",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_be_is_refused_with_one_message(given: str) -> None:
    with pytest.raises(SettingError, match=REFUSED[given]):
        build_scenario(tiny_settings(given))


OWN = ("task.primary=tests.task.own_parts:brier", "task.direction=down")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (*OWN, "stop.accuracy=0.5"),
            "stop.accuracy=0.5 is not allowed: the primary metric is 'brier'; ",
        ),
        (("stop.accuracy=0.5", "stop.primary=0.5"), "accuracy=0.5 and primary=0.5 are both given; allowed: one"),
        (
            (f"task.loss={HERE}:focal", "training.label_smoothing=0.1"),
            "training.label_smoothing=0.1 is not allowed with task 'classification', which has no classes in its",
        ),
        ((f"task.loss={HERE}:focal", "training.class_weights=balanced"), "which has no classes in its loss"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_scenario(tiny_settings(*given))


def test_a_method_that_needs_classes_is_refused_with_a_loss_of_ones_own() -> None:
    with pytest.raises(SettingError, match=r"method.name='heterofl' is not allowed with task 'classification'"):
        build_scenario(settings_of("heterofl", f"task.loss={HERE}:focal"))


def test_the_settings_name_the_metrics_of_the_tasks() -> None:
    assert TASK_METRICS.keys() == TASKS.keys()
    for name, task in TASKS.items():
        counted = [] if task.class_metrics is None else ["balanced_accuracy", "macro_f1"]
        assert {metric.name for metric in TASK_METRICS[name]} == {*task.known, *counted}
