import numpy as np
import pytest
import torch
from torch import nn

from raysim.client.hooks import GradientMoments, LocalHooks
from raysim.client.optimizers import clipped
from raysim.client.training import LocalTraining, train
from raysim.core.tensors import one_thread
from raysim.data.batches import batch_slices
from raysim.task.table import TASKS

INPUTS = torch.randn(23, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(23) % 3
TASK = TASKS["classification"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    "local",
    [
        LocalTraining("sgd", 0.1, momentum=0.9, weight_decay=0.01, epochs=3, batch_size=5),
        LocalTraining("sgd", 0.1, momentum=0.0, clip_norm=0.1, epochs=2, batch_size=11),
        LocalTraining("adam", 0.01, momentum=0.9, weight_decay=0.01, epochs=3, batch_size=5),
    ],
    ids=["sgd", "clipped", "adam"],
)
def test_training_equals_a_loop_with_pytorchs_optimizer_classes(local: LocalTraining) -> None:
    ours, theirs = network(), network()
    loss = train(ours, INPUTS, LABELS, TASK, local, local.learning_rate, np.random.default_rng(1)).loss
    kinds = {
        "sgd": lambda: torch.optim.SGD(theirs.parameters(), 0.1, local.momentum, weight_decay=local.weight_decay),
        "adam": lambda: torch.optim.Adam(theirs.parameters(), 0.01, weight_decay=local.weight_decay),
    }
    optimizer, order, losses = kinds[local.optimizer](), np.random.default_rng(1), []
    for _ in range(local.epochs):
        shuffled = torch.from_numpy(order.permutation(23))
        for start in range(0, 23, local.batch_size):
            rows = shuffled[start : start + local.batch_size]
            if start + local.batch_size == 22:
                rows = shuffled[start:]
            elif start == 22:
                continue
            batch_loss = nn.functional.cross_entropy(theirs(INPUTS[rows]), LABELS[rows])
            optimizer.zero_grad()
            batch_loss.backward()
            if local.clip_norm:
                nn.utils.clip_grad_norm_(theirs.parameters(), local.clip_norm)
            optimizer.step()
            losses.append(batch_loss.item() * len(rows))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert loss == pytest.approx(sum(losses) / (23 * local.epochs), rel=1e-5)


@pytest.mark.parametrize(("rows", "size"), [(1, 5), (5, 5), (6, 5), (10, 5), (11, 5), (3, 1), (2, 1)])
def test_batches_cover_all_rows_and_none_is_a_lonely_last(rows: int, size: int) -> None:
    batches = batch_slices(rows, size)
    assert [row for batch in batches for row in range(batch.start, batch.stop)] == list(range(rows))
    lengths = [batch.stop - batch.start for batch in batches]
    assert min(lengths) > 1 or rows == 1 or size == 1
    assert max(lengths) <= size + 1
    assert LocalTraining(epochs=4, batch_size=size).num_steps(rows) == 4 * len(batches)


def test_moments_are_means_of_minibatch_gradients_and_their_squares() -> None:
    model, moments = network(), GradientMoments()
    local = LocalTraining("sgd", 0.0, momentum=0.0, epochs=2, batch_size=8)
    train(model, INPUTS, LABELS, TASK, local, 0.0, np.random.default_rng(3), LocalHooks(observe=(moments,)))
    order, gradients = np.random.default_rng(3), []
    for _ in range(2):
        shuffled = torch.from_numpy(order.permutation(23))
        for batch in batch_slices(23, 8):
            loss = nn.functional.cross_entropy(model(INPUTS[shuffled[batch]]), LABELS[shuffled[batch]])
            gradients.append(torch.autograd.grad(loss, model[0].weight)[0])
    means, squares = moments.means(model)
    torch.testing.assert_close(means["0.weight"], torch.stack(gradients).mean(0))
    torch.testing.assert_close(squares["0.weight"], (torch.stack(gradients) ** 2).mean(0))


def test_parameters_without_a_gradient_stay() -> None:
    model = nn.ModuleDict({"used": nn.Linear(6, 3), "unused": nn.Linear(2, 2)})
    model.forward = lambda inputs: model["used"](inputs)  # type: ignore[method-assign]
    model["used"].bias.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    train(model, INPUTS, LABELS, TASK, LocalTraining(momentum=0.0), 0.1, np.random.default_rng(0))
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"used.weight"}


def test_learning_rate_decays_by_round() -> None:
    assert LocalTraining(learning_rate=0.8, lr_decay=0.5).learning_rate_in(3) == 0.2


def test_clipping_leaves_small_gradients_and_shortens_large_ones() -> None:
    small = clipped([torch.tensor([0.3]), torch.tensor([0.4])], 1.0)
    assert [float(g) for g in small] == pytest.approx([0.3, 0.4])
    large = clipped([torch.tensor([30.0]), torch.tensor([40.0])], 1.0)
    assert [float(g) for g in large] == pytest.approx([0.6, 0.8])


def test_one_thread_puts_the_number_of_threads_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
