"""Tasks with positions: losses and metrics are those of PyTorch and scikit-learn on the positions that count."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn
from torch.nn import functional

from raysim.client import vmap
from raysim.client.training import LocalTraining, train
from raysim.client.vmap import Pack
from raysim.config.metric import metric_named
from raysim.core import seeding
from raysim.core.errors import SettingError
from raysim.data.batches import batch_slices
from raysim.task.classification import with_training_loss
from raysim.task.own import with_metrics
from raysim.task.positions import IGNORED, NEXT_TOKEN, SEGMENTATION, TOKEN_CLASSIFICATION
from raysim.task.table import TASKS

ROWS, TIME, CLASSES = 30, 7, 5
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(ROWS, TIME, CLASSES, generator=GENERATOR)
TOKENS = torch.randint(0, CLASSES, (ROWS, TIME), generator=GENERATOR)
TOKENS[torch.rand(ROWS, TIME, generator=GENERATOR) < 0.4] = IGNORED
TOKENS[3] = IGNORED
PIXEL_LOGITS = torch.randn(ROWS, CLASSES, 4, 6, generator=GENERATOR)
PIXELS = torch.randint(0, CLASSES, (ROWS, 4, 6), generator=GENERATOR)
PIXELS[torch.rand(ROWS, 4, 6, generator=GENERATOR) < 0.3] = IGNORED
COUNTED = TOKENS != IGNORED
GIVEN = {
    "next-token": (LOGITS, TOKENS),
    "token-classification": (LOGITS, TOKENS),
    "segmentation": (PIXEL_LOGITS, PIXELS),
}
FLAT = {
    "next-token": LOGITS[COUNTED],
    "token-classification": LOGITS[COUNTED],
    "segmentation": PIXEL_LOGITS.movedim(1, -1)[PIXELS != IGNORED],
}
"""Logits `(counted positions, classes)`."""


@pytest.mark.parametrize("name", GIVEN)
def test_the_loss_is_the_mean_over_the_positions_that_count(name: str) -> None:
    task, (outputs, targets) = TASKS[name], GIVEN[name]
    actual = targets[targets != IGNORED]
    expected = functional.cross_entropy(FLAT[name], actual)
    torch.testing.assert_close(task.loss(outputs, targets), expected)
    torch.testing.assert_close(task.loss(outputs, targets, reduction="sum"), expected * len(actual))
    each = task.loss(outputs, targets, reduction="none")
    assert each.shape == targets.shape
    assert (each[targets == IGNORED] == 0).all()
    sums = task.sums(outputs, targets)
    assert sums.count == task.count(targets) == len(actual)
    assert sums.mean_loss == pytest.approx(float(functional.cross_entropy(FLAT[name].double(), actual)), rel=1e-12)
    assert float(task.loss(outputs[:1], torch.full_like(targets[:1], IGNORED))) == 0
    assert np.isnan(task.sums(outputs[:1], torch.full_like(targets[:1], IGNORED)).mean_loss)


def test_logits_of_sequences_may_have_their_classes_first_or_last() -> None:
    for task in (NEXT_TOKEN, TOKEN_CLASSIFICATION):
        first = task.sums(LOGITS.transpose(1, 2), TOKENS)
        last = task.sums(LOGITS, TOKENS)
        assert first.loss == last.loss
        assert task.finished(first) == task.finished(last)


def test_metrics_of_tokens_are_those_of_scikit_learn() -> None:
    metrics, plain = ["macro_f1", "balanced_accuracy", "per_class"], TOKEN_CLASSIFICATION
    task = with_metrics(plain, metrics, None, plain.primary, CLASSES, of_clients=False)
    sums = [task.sums(LOGITS[rows], TOKENS[rows], with_further=True) for rows in (slice(0, 4), slice(4, 30))]
    found, actual, predicted = task.further_of(sums[0] + sums[1]), TOKENS[COUNTED], LOGITS[COUNTED].argmax(1)
    assert task.primary_of(sums[0] + sums[1]) == sklearn_metrics.accuracy_score(actual, predicted)
    assert found["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(actual, predicted, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(actual, predicted))
    recall = sklearn_metrics.recall_score(actual, predicted, average=None)
    assert [found[f"recall/{each}"] for each in range(CLASSES)] == pytest.approx(recall)


def test_perplexity_is_the_exponential_of_the_mean_cross_entropy() -> None:
    task = with_metrics(NEXT_TOKEN, ["token_accuracy"], None, NEXT_TOKEN.primary, CLASSES, of_clients=False)
    parts = [task.sums(LOGITS[rows], TOKENS[rows], with_further=True) for rows in (slice(0, 11), slice(11, 30))]
    total, actual = parts[0] + parts[1], TOKENS[COUNTED]
    expected = float(functional.cross_entropy(FLAT["next-token"].double(), actual).exp())
    assert task.primary_of(total) == pytest.approx(expected, rel=1e-12)
    assert task.further_of(total) == {"token_accuracy": float((LOGITS[COUNTED].argmax(1) == actual).double().mean())}
    assert task.primary.direction == "down"
    assert NEXT_TOKEN.metrics["perplexity"].finish(np.array(1e6), 1) == np.inf


def test_mean_iou_and_pixel_accuracy_are_those_of_scikit_learn() -> None:
    task = with_metrics(SEGMENTATION, ["pixel_accuracy"], None, SEGMENTATION.primary, CLASSES, of_clients=False)
    targets = torch.where(PIXELS == 4, 1, PIXELS)  # a class that does not occur, but is predicted
    actual, predicted = targets[targets != IGNORED], FLAT["segmentation"].argmax(1)
    total = task.sums(PIXEL_LOGITS[:9], targets[:9], True) + task.sums(PIXEL_LOGITS[9:], targets[9:], True)
    expected = sklearn_metrics.jaccard_score(actual, predicted, average="macro")
    assert task.primary_of(total) == pytest.approx(expected, rel=1e-12)
    assert task.further_of(total)["pixel_accuracy"] == sklearn_metrics.accuracy_score(actual, predicted)
    logits = PIXEL_LOGITS.clone()
    logits[:, 4] = -50  # neither occurs nor is predicted: left out
    absent = task.sums(logits, targets)
    predicted = logits.movedim(1, -1)[targets != IGNORED].argmax(1)
    assert task.primary_of(absent) == pytest.approx(sklearn_metrics.jaccard_score(actual, predicted, average="macro"))


@pytest.mark.parametrize("name", GIVEN)
def test_clients_are_scored_together_as_alone(name: str) -> None:
    task, (outputs, targets) = TASKS[name], GIVEN[name]
    counts = np.array([10, 1, 6])
    shaped = [tensor.view(3, 10, *tensor.shape[1:]) for tensor in (outputs, targets)]
    for place, found in enumerate(task.sums_of_each(*shaped, counts)):
        rows = slice(10 * place, 10 * place + int(counts[place]))
        alone = task.sums(outputs[rows], targets[rows])
        assert found.count == alone.count
        assert found.loss == pytest.approx(alone.loss, rel=1e-12)
        assert task.finished(found) == pytest.approx(task.finished(alone), nan_ok=True)


class Tagger(nn.Sequential):
    """Logits `(rows, time, classes)` of tokens."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(11, 6), nn.Linear(6, CLASSES))


LOCAL = LocalTraining(momentum=0.0, batch_size=4, epochs=2)
WEIGHTS = (1.0, 2.0, 0.5, 4.0, 1.5)
LOSSES = {"plain": None, "smoothed": (0.1, None), "weighted": (0.0, WEIGHTS), "both": (0.2, WEIGHTS)}


def with_loss(task, given):
    return task if given is None else with_training_loss(task, *given)


@pytest.mark.parametrize("given", LOSSES.values(), ids=LOSSES)
def test_training_is_that_of_a_loop_in_pytorch_and_batches_count_by_their_positions(given) -> None:
    task = with_loss(TOKEN_CLASSIFICATION, given)
    smoothing, weights = given or (0.0, None)
    torch.manual_seed(0)
    ours, theirs = Tagger(), Tagger()
    theirs.load_state_dict(ours.state_dict())
    inputs, targets = torch.randint(0, 11, (10, TIME)), TOKENS[:10]
    loss = train(ours, inputs, targets, task, LOCAL, 0.5, np.random.default_rng(1)).loss
    optimizer, order, losses, counts = torch.optim.SGD(theirs.parameters(), 0.5), np.random.default_rng(1), [], []
    for _ in range(2):
        shuffled = torch.from_numpy(order.permutation(10))
        for batch in batch_slices(10, 4):
            rows = shuffled[batch]
            flat = theirs(inputs[rows]).flatten(0, 1)
            mean = functional.cross_entropy(
                flat,
                targets[rows].flatten(),
                None if weights is None else torch.tensor(weights),
                label_smoothing=smoothing,
            )
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            losses.append(mean.item())
            counts.append(int((targets[rows] != IGNORED).sum()))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert loss == pytest.approx(np.average(losses, weights=counts), rel=1e-5)


@pytest.mark.parametrize("given", LOSSES.values(), ids=LOSSES)
def test_clients_train_together_as_alone(given) -> None:
    task = with_loss(TOKEN_CLASSIFICATION, given)
    torch.manual_seed(0)
    model = Tagger()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = torch.randint(0, 11, (3, 10, TIME))
    targets = TOKENS.view(3, 10, TIME).clone()
    targets[1, :5] = IGNORED  # batches without any position that counts
    counts, local = np.array([10, 9, 10]), replace(LOCAL, batch_size=5)
    pack = Pack(np.array([4, 7, 9]), inputs, targets, counts)
    weights, losses = vmap.train_pack(model, start, pack, task, local, 0.3, seed=5, round=2)
    for index, client in enumerate((4, 7, 9)):
        alone = Tagger()
        alone.load_state_dict(start)
        own, order = slice(0, int(counts[index])), seeding.generator(5, "batches", 2, client)
        trained = train(alone, inputs[index, own], targets[index, own], task, local, 0.3, order)
        assert losses[index] == pytest.approx(trained.loss, rel=1e-5)
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(weights[key][index], value, rtol=1e-4, atol=1e-6)


def test_batches_that_differ_in_what_counts_have_other_weights_than_rows() -> None:
    counts = [int((rows != IGNORED).sum()) for rows in TOKENS[:8].split(4)]
    assert any(first != second for first, second in pairwise(counts)), "else the tests above show nothing"


@pytest.mark.parametrize("name", GIVEN)
def test_outputs_and_targets_of_other_shapes_are_named(name: str) -> None:
    task, (outputs, targets) = TASKS[name], GIVEN[name]
    assert task.outputs(outputs, targets) is None
    assert "logits (30, classes" in task.outputs(outputs[:, 0], targets)
    with pytest.raises(SettingError, match=rf"not allowed with task '{name}', which has no classes that a client"):
        task.own_classes_for("method.name='heterofl'")
    with pytest.raises(SettingError, match=rf"not allowed with task '{name}', which has no loss against"):
        task.distillation_for("method.options.distill=True")
    assert pickle.loads(pickle.dumps(task)) == task


def test_a_further_metric_may_lead() -> None:
    metric = metric_named("token-classification", "macro_f1")
    task = with_metrics(TOKEN_CLASSIFICATION, ["token_accuracy"], "macro_f1", metric, CLASSES, of_clients=True)
    sums = task.sums(LOGITS, TOKENS, with_further=True)
    actual, predicted = TOKENS[COUNTED], LOGITS[COUNTED].argmax(1)
    assert task.primary_of(sums) == pytest.approx(sklearn_metrics.f1_score(actual, predicted, average="macro"))
    assert task.further_of(sums) == {"token_accuracy": sklearn_metrics.accuracy_score(actual, predicted)}
    assert task.of_clients == ("token_accuracy",)
    assert replace(task, further={}).further_of(sums) == {}
