"""Train clients of equal submodels together, as one batch of models (`torch.func.vmap`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import vmap

from raysim.client.training import LocalTraining, computing_in
from raysim.core import seeding
from raysim.core.inputs import Inputs, each, predict, take
from raysim.core.tensors import Params
from raysim.data.batches import batch_slices
from raysim.data.row_sets import ClientRows
from raysim.data.splits import DataSplits
from raysim.task.task import ScoreSums, Task


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Clients that train submodels of one mask in the same number of steps.

    Attributes:
        clients: Their ids, `(clients,)`.
        inputs: `(clients, rows, ...)`, or several by name; clients with fewer rows repeat one of their own.
        targets: `(clients, rows, ...)`.
        counts: How many rows each client owns, `(clients,)`.
    """

    clients: NDArray[np.int64]
    inputs: Inputs
    targets: torch.Tensor
    counts: NDArray[np.int64]


def pack_of(data: DataSplits, clients: NDArray[np.int64], owned: ClientRows, device: str = "cpu") -> Pack:
    """Load the rows of a pack's clients from the training data onto a device."""
    rows, counts = owned.several(clients)
    columns = np.minimum(np.arange(counts.max()), counts[:, None] - 1)
    chosen = rows[(np.cumsum(counts) - counts)[:, None] + columns]
    inputs, targets = data.train_rows(chosen.ravel())

    def by_client(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device).view(*chosen.shape, *tensor.shape[1:])

    return Pack(clients, each(by_client, inputs), by_client(targets), counts)


def train_pack(
    model: nn.Module,
    start: Params,
    pack: Pack,
    task: Task,
    local: LocalTraining,
    learning_rate: float,
    seed: int,
    round: int,
) -> tuple[Params, NDArray[np.float64]]:
    """Train a pack.

    Args:
        model: A skeleton of the submodel; it is left unchanged.
        start: Parameters that all clients start from.
        pack: The clients and their rows.
        task: The task whose loss is minimised.
        local: Optimizer, epochs and batch size.
        learning_rate: Step size of this round.
        seed: Seed of the experiment.
        round: Counted from 1.

    Returns:
        Trained parameters, `(clients, ...)` by key, and each client's mean loss per row, `(clients,)`.
    """
    model.train()
    size = len(pack.clients)
    weights = {key: tensor.expand(size, *tensor.shape).clone() for key, tensor in start.items()}
    parameters = [nn.Parameter(weights[name], value.requires_grad) for name, value in model.named_parameters()]
    named: Params = dict(zip((name for name, _ in model.named_parameters()), parameters, strict=True))
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    step = local.step_of(trainable)
    slices = {count: batch_slices(count, local.batch_size) for count in set(pack.counts.tolist())}
    batches = [slices[count] for count in pack.counts.tolist()]
    orders = [seeding.generator(seed, "batches", round, int(client)) for client in pack.clients]
    device = pack.targets.device
    members = torch.arange(size, device=device)[:, None]
    totals = torch.zeros(size, dtype=torch.float64, device=device)

    def loss_of(own: Params, inputs: Inputs, targets: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        losses = task.minimised(predict(model, inputs, own), targets, reduction="none")
        return (losses * shares).sum()

    losses_of = vmap(loss_of)
    for _ in range(local.epochs):
        shuffled = [order.permutation(int(count)) for order, count in zip(orders, pack.counts, strict=True)]
        for step_index in range(len(batches[0])):
            rows, lengths = (tensor.to(device) for tensor in _rows_of_step(shuffled, batches, step_index))
            targets = pack.targets[members, rows]
            with computing_in(local.precision, targets):
                losses = losses_of(
                    named, take(pack.inputs, (members, rows)), targets, _shares_of_rows(task, targets, lengths)
                )
            gradients = list(torch.autograd.grad(losses.sum(), trainable, materialize_grads=True))
            if local.clip_norm is not None:
                gradients = clipped_each(gradients, local.clip_norm)
            step(gradients, learning_rate)
            totals += losses.detach().double() * _counts_of(task, targets, lengths)
    counted = _counts_of(task, pack.targets, torch.from_numpy(pack.counts).to(device)).clamp(min=1).cpu().numpy()
    return weights, totals.cpu().numpy() / (counted * local.epochs)


def _rows_of_step(
    shuffled: Sequence[NDArray[np.int64]], batches: Sequence[Sequence[slice]], index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of one step, `(clients, most)`, and how many each client has; the rest repeats its first."""
    rows = [order[cut[index]] for order, cut in zip(shuffled, batches, strict=True)]
    lengths = np.array([len(each) for each in rows])
    if lengths.min() < lengths.max():
        rows = [np.pad(each, (0, lengths.max() - len(each)), constant_values=each[0]) for each in rows]
    return torch.from_numpy(np.stack(rows)), torch.from_numpy(lengths)


def _shares_of_rows(task: Task, targets: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the share of each row, or position, in the mean loss of its client; rows that fill up have none.

    Returns:
        `(clients, most)`, or `(clients, most, 1 ...)` where the task has positions.
    """
    weights = _are_own(targets, lengths).float()
    if task.row_weights is None:
        return weights / lengths[:, None]
    parts = task.row_weights(targets)
    weights = weights.view(*weights.shape, *[1] * (parts.dim() - 2))
    total = (weights * parts).flatten(1).sum(1).view(-1, *[1] * (parts.dim() - 1))
    return weights / torch.where(total > 0, total, 1)


def _are_own(targets: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return which rows of `(clients, most, ...)` are the client's own, `(clients, most)`; others fill up."""
    return torch.arange(targets.shape[1], device=targets.device) < lengths[:, None]


def _counts_of(task: Task, targets: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return how much is counted in each client's rows, `(clients,)`."""
    if task.counted is None:
        return lengths
    counts = task.counted(targets).flatten(2).sum(2)
    return torch.where(_are_own(targets, lengths), counts, 0).sum(1)


def clipped_each(gradients: list[torch.Tensor], max_norm: float) -> list[torch.Tensor]:
    """Return gradients `(clients, ...)`, each client's scaled so that their common norm is at most `max_norm`."""
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    scale = torch.clamp(max_norm / (squares.sum(0).sqrt() + 1e-6), max=1.0)
    return [gradient * scale.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]


def score_each(task: Task, model: nn.Module, weights: Params, pack: Pack) -> list[ScoreSums]:
    """Score each client's own model on its rows."""
    model.eval()
    with torch.no_grad():
        outputs = vmap(lambda own, inputs: predict(model, inputs, own))(weights, pack.inputs)
        return task.sums_of_each(outputs, pack.targets, pack.counts)
