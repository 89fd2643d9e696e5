"""Metrics from summed counts equal scikit-learn's on all rows, however the rows are cut into pieces."""

import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from raysim.core.errors import SettingError
from raysim.executors.in_process import InProcessRunner
from raysim.experiment import run as experiment
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from raysim.task.classification import CLASSIFICATION
from raysim.task.metrics import further_metrics, names_of
from tests.clocked import QUICK, played
from tests.conftest import tiny_settings

CLASSES = 7
NAMES = ("balanced_accuracy", "macro_f1", "top_3", "per_class")
TASK = replace(CLASSIFICATION, further=further_metrics(NAMES, CLASSES))


def rows(seed: int, absent: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and classes of 400 rows; a class may have no row, or never be predicted."""
    rng = np.random.Generator(np.random.PCG64(seed))
    classes = torch.from_numpy(rng.choice(CLASSES, 400, p=np.arange(1, CLASSES + 1) / 28))
    logits = torch.from_numpy(rng.normal(size=(400, CLASSES))).float()
    logits[torch.arange(400), classes] += 0.8
    if absent is not None:
        classes[classes == absent] = (absent + 1) % CLASSES
    return logits, classes


def found(logits: torch.Tensor, classes: torch.Tensor, cut: int = 400) -> dict[str, float]:
    first, *others = (
        TASK.sums(logits[start : start + cut], classes[start : start + cut], with_further=True)
        for start in range(0, len(classes), cut)
    )
    return TASK.further_of(sum(others, first))


@pytest.mark.parametrize("absent", [None, 0, 6])
@pytest.mark.parametrize("never_predicted", [False, True])
def test_metrics_are_those_of_scikit_learn(absent: int | None, never_predicted: bool) -> None:
    for seed in range(5):
        logits, classes = rows(seed, absent)
        if never_predicted:
            logits[:, 2] = -50.0
        ours, actual, predicted = found(logits, classes), classes.numpy(), logits.argmax(1).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that are predicted and absent
            balanced = sklearn_metrics.balanced_accuracy_score(actual, predicted)
        macro = sklearn_metrics.f1_score(actual, predicted, average="macro", zero_division=0.0)
        top = sklearn_metrics.top_k_accuracy_score(actual, logits.numpy(), k=3, labels=np.arange(CLASSES))
        assert ours["balanced_accuracy"] == pytest.approx(balanced, rel=1e-12)
        assert ours["macro_f1"] == pytest.approx(macro, rel=1e-12)
        assert ours["top_3"] == pytest.approx(top, rel=1e-12)
        report = sklearn_metrics.precision_recall_fscore_support(
            actual, predicted, labels=np.arange(CLASSES), zero_division=np.nan
        )
        for name, expected in zip(("precision", "recall", "f1"), report, strict=False):
            own = [ours[f"{name}/{index}"] for index in range(CLASSES)]
            np.testing.assert_allclose(own, expected, rtol=1e-12)


def test_pieces_give_the_same_to_the_bit_and_clients_count_none_of_it() -> None:
    logits, classes = rows(3)
    whole = found(logits, classes)
    assert list(whole) == names_of(TASK.further)
    for cut in (1, 37, 399):
        assert found(logits, classes, cut) == whole
    assert TASK.sums(logits, classes).terms.keys() == {"accuracy"}
    logits[0] = float("nan")
    assert found(logits[:1], classes[:1])["top_3"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.metrics=[top_10]", r"task.metrics='top_10' is not allowed with 10 classes; allowed: top_2 to top_9"),
        ("task.metrics=[top_1]", r"task: metrics='top_1' is no metric of task 'classification'; known: top_2, "),
        ("task.metrics=[macro_f2]", r"'macro_f2' is no metric of task 'classification'; known: macro_f1, "),
        ("task.metrics=[macro_f1, macro_f1]", "'macro_f1' is given more than once"),
    ],
)
def test_what_is_no_metric_is_refused(override: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_scenario(tiny_settings(override))


ASKED = ("task.metrics=[balanced_accuracy, macro_f1, top_3, per_class]", "task.client_metrics=true")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("task.client_metrics=true",), "client_metrics=True has no effect without metrics"),
        ((*ASKED, "data.heldout_share=0.0"), "client_metrics=True has no effect without data.heldout_share"),
        ((*ASKED, "evaluation.client_share=0.0"), "client_metrics=True has no effect without data.heldout_share"),
    ],
)
def test_metrics_of_clients_without_metrics_or_rows_are_refused(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tiny_settings(*changes)


@pytest.mark.parametrize("more", [(), ("model.name=mlp", "method.name=fedavg", "training.pack=3")])
def test_clients_are_scored_by_them_if_asked(more: tuple[str, ...]) -> None:
    scenario = build_scenario(tiny_settings(*QUICK, "data.heldout_share=0.4", "model.options={}", *more, *ASKED))
    _, (report, *_) = played(scenario, rounds=1)
    clients, population = report.clients, scenario.workload.population
    scored = ~np.isnan(clients["accuracy"])
    assert scored.any()
    for name in ("balanced_accuracy", "macro_f1", "top_3"):
        assert (np.isnan(clients[f"heldout_{name}"]) == ~scored).all()
    assert (clients["heldout_top_3"][scored] >= clients["accuracy"][scored]).all()
    for index in np.flatnonzero(scored):
        labels = scenario.workload.data.train_targets[population.heldout[clients["client"][index]]]
        rows_of = np.bincount(labels, minlength=10)
        recall = np.array([clients[f"heldout_recall/{label}"][index] for label in range(10)])
        assert (np.isnan(recall) == (rows_of == 0)).all()
        assert np.nansum(recall * rows_of) / rows_of.sum() == pytest.approx(clients["accuracy"][index])
        assert clients["heldout_balanced_accuracy"][index] == pytest.approx(np.nanmean(recall))
        f1 = [clients[f"heldout_f1/{label}"][index] for label in range(10)]
        assert clients["heldout_macro_f1"][index] == pytest.approx(np.nanmean(f1))


def test_packs_give_clients_the_same_metrics() -> None:
    shared = (*QUICK, "model.name=mlp", "model.options={hidden: [8]}", "method.name=fedavg", *ASKED)
    packed, alone = (
        played(build_scenario(tiny_settings(*shared, f"training.pack={size}")), rounds=1)[1][0].clients
        for size in (3, 1)
    )
    assert packed.keys() == alone.keys()
    for name in (name for name in packed if name.startswith("heldout_")):
        np.testing.assert_allclose(packed[name].astype(float), alone[name].astype(float), rtol=1e-4)


@pytest.mark.slow
def test_metrics_of_a_run_are_in_its_records_summary_report_and_store(tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = tiny_settings(
        *QUICK,
        "rounds=2",
        f"task.metrics=[{', '.join(NAMES)}]",
        "data.validation_share=0.1",
        f"tracking.uri=sqlite:///{tmp_path}/m.db",
    )
    experiment.run(experiment.prepare(settings, output), InProcessRunner(), time.monotonic())
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    table = records.read(output / "rounds.parquet")
    for split in ("test", "validation"):
        for name in ("balanced_accuracy", "macro_f1", "top_3", "recall/9"):
            assert table[f"{split}/{name}"][-1] == summary["metrics"][split][name]
    assert 0 < summary["metrics"]["test"]["balanced_accuracy"] < summary["metrics"]["test"]["top_3"]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert all(each in page for each in ("balanced_accuracy", "top_3", "recall"))
    from mlflow.tracking import MlflowClient

    stored = MlflowClient(f"sqlite:///{tmp_path}/m.db").get_run(summary["run_id"]).data.metrics
    assert stored["test/macro_f1"] == summary["metrics"]["test"]["macro_f1"]
    assert "validation/top_3" in stored
    assert not [name for name in stored if "recall" in name or "test/f1" in name]
    assert len({name for name in stored if not name.startswith("system/")}) <= 60
    _, reports = played(build_scenario(tiny_settings(*QUICK, "rounds=2", "data.validation_share=0.1")))
    assert reports[-1].score.primary == summary["accuracy"], "metrics change nothing else"
