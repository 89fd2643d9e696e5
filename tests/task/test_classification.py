"""The smoothed and weighted cross entropy is PyTorch's, wherever clients minimise a loss, but not in scores."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from raysim.client.training import LocalTraining, train
from raysim.core import tensors
from raysim.core.errors import SettingError
from raysim.simulation.build import build_scenario
from raysim.task.classification import CLASSIFICATION, CrossEntropy, balanced_weights, with_training_loss
from raysim.task.numbers import REGRESSION
from tests.clocked import QUICK, played
from tests.conftest import NEEDED_BY, tiny_settings

WEIGHTS = (0.5, 2.0, 4.0)
LOGITS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 3
OPTIONS = {"smoothed": (0.2, None), "weighted": (0.0, WEIGHTS), "both": (0.3, WEIGHTS)}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_loss_is_that_of_the_formula(options):
    """-sum_c t_c u_c log p_c, t the smoothed label and u the weights, over the sum of the rows' weights."""
    smoothing, weights = options
    loss = CrossEntropy(smoothing, weights)
    given = torch.ones(3) if weights is None else torch.tensor(weights)
    labels = functional.one_hot(CLASSES, 3) * (1 - smoothing) + smoothing / 3
    each = -(labels * given * LOGITS.log_softmax(1)).sum(1)
    torch.testing.assert_close(loss(LOGITS, CLASSES, reduction="none"), each)
    torch.testing.assert_close(loss(LOGITS, CLASSES), each.sum() / given[CLASSES].sum())
    copy = pickle.loads(pickle.dumps(loss))
    assert torch.equal(copy(LOGITS.double(), CLASSES), loss(LOGITS.double(), CLASSES))


def test_classes_without_rows_count_as_zero_in_the_smoothed_loss_too():
    owned = torch.tensor([True, False, True])
    loss = with_training_loss(CLASSIFICATION, 0.1, WEIGHTS).own_classes.loss(owned)
    kept = CLASSES != 1
    expected = functional.cross_entropy(
        LOGITS[kept] * torch.tensor([1, 0, 1]), CLASSES[kept], torch.tensor(WEIGHTS), label_smoothing=0.1
    )
    torch.testing.assert_close(loss(LOGITS[kept], CLASSES[kept]), expected)


def test_scores_are_those_of_the_plain_loss():
    task = with_training_loss(CLASSIFICATION, 0.1, WEIGHTS)
    assert task.sums(LOGITS, CLASSES).loss == CLASSIFICATION.sums(LOGITS, CLASSES).loss


def test_training_minimises_it_as_a_loop_in_pytorch():
    task, local = (
        with_training_loss(CLASSIFICATION, 0.1, WEIGHTS),
        LocalTraining(momentum=0.0, batch_size=8, epochs=2),
    )
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    loss = train(ours, LOGITS, CLASSES, task, local, 0.5, np.random.default_rng(1)).loss
    optimizer, order, losses = torch.optim.SGD(theirs.parameters(), 0.5), np.random.default_rng(1), []
    for _ in range(2):
        shuffled = torch.from_numpy(order.permutation(40))
        for rows in shuffled.split(8):
            mean = functional.cross_entropy(
                theirs(LOGITS[rows]), CLASSES[rows], torch.tensor(WEIGHTS), label_smoothing=0.1
            )
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            losses.append(mean.item())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2, 3], [7, 1, 30, 12])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert balanced_weights(np.bincount(labels)) == pytest.approx(expected)
    scenario = build_scenario(tiny_settings("data.max_train_examples=150", "training.class_weights=balanced"))
    counts = np.bincount(scenario.workload.data.train_targets)
    assert scenario.workload.task.training_loss.class_weights == balanced_weights(counts)


def test_balanced_weights_are_those_of_the_rows_that_train():
    some = ("data.max_train_examples=150", "data.validation_share=0.3", "training.class_weights=balanced")
    scenario = build_scenario(tiny_settings(*some))
    labels = scenario.workload.data.train_targets
    counts, all_counts = np.bincount(np.delete(labels, scenario.validation_rows)), np.bincount(labels)
    assert scenario.workload.task.training_loss.class_weights == balanced_weights(counts)
    assert balanced_weights(counts) != balanced_weights(all_counts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("fedavg", ()),
        ("heterofl", ()),
        ("dapperfl", ()),
        ("fjord", ()),
        ("fjord", ("method.options={distill: true}",)),
        ("ca-hfp", ("method.estimator=hutchinson", "method.warmup_rounds=0")),
        ("scaffold", ()),
    ],
)
@pytest.mark.parametrize("given", ["label_smoothing=0.3", "class_weights=[1, 1, 1, 1, 1, 1, 1, 1, 1, 2]"])
def test_every_loss_that_a_method_minimises_has_the_options(method, more, given):
    same = (*QUICK, "rounds=1", f"method.name={method}", *NEEDED_BY.get(method, ()), *more)
    plain, changed = (
        played(build_scenario(tiny_settings(*same, *extra)))[0] for extra in ((), (f"training.{given}",))
    )
    assert tensors.digest(plain.params) != tensors.digest(changed.params)


REFUSED = {
    "training.label_smoothing=1.0": "training.label_smoothing=1.0 is not allowed; allowed: less than 1",
    "training.class_weights=[1, 2]": "training.class_weights of 2 weights, 2 of them different, are not all",
    "training.class_weights=[2, 2, 2, 2, 2, 2, 2, 2, 2, 2]": "of 10 weights, 1 of them different, are not allowed",
    "training.class_weights=[1, 2, 3, 4, 5, 6, 7, 8, 9, 0]": "training.class_weights.9=0 is not allowed; allowed:",
    "training.class_weights=[1, 2, 3, 4, 5, 6, 7, 8, 9, .nan]": "training.class_weights.9=nan is not allowed",
    "training.class_weights=even": "training.class_weights='even' is not allowed; allowed: a valid list or",
}


@pytest.mark.parametrize("given", REFUSED)
def test_options_that_cannot_be_are_refused(given):
    with pytest.raises(SettingError) as refused:
        build_scenario(tiny_settings(given))
    assert REFUSED[given] in str(refused.value)


def test_a_task_without_classes_refuses_them():
    with pytest.raises(SettingError, match=r"training\.label_smoothing=0\.1 is not allowed with task 'regression'"):
        with_training_loss(REGRESSION, 0.1, None)
