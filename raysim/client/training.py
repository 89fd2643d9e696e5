"""Train one client's submodel on its rows with plain PyTorch, on one thread."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from raysim.client.fused_sgd import PlainDescent, is_chain
from raysim.client.hooks import BatchLoss, LocalHooks
from raysim.client.memory_format import computing_on, laid_out
from raysim.client.optimizers import Descent, HookedDescent, Step, optimizer_step
from raysim.client.schedule import CONSTANT, Schedule
from raysim.core.inputs import Inputs, predict, take
from raysim.data.batches import batch_slices
from raysim.task.task import Loss, Task


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """How every client trains; the fields are those of the `training` settings."""

    optimizer: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    lr_decay: float = 1.0
    schedule: Schedule = CONSTANT
    clip_norm: float | None = None
    epochs: int = 1
    batch_size: int = 10
    precision: str = "float32"
    memory_format: str = "contiguous"

    def learning_rate_in(self, round: int) -> float:
        """Return the step size of a round, counted from 1; training before round 1 has that of round 1."""
        return self.learning_rate * self.lr_decay ** max(round - 1, 0) * self.schedule.share_in(round)

    @property
    def optimizer_buffers(self) -> int:
        """How many numbers the optimizer keeps for every parameter."""
        return int(self.momentum > 0) if self.optimizer == "sgd" else 2

    def num_steps(self, num_examples: int) -> int:
        """Return how many optimizer steps a client takes in a round."""
        return self.epochs * len(batch_slices(num_examples, self.batch_size))

    def step_of(self, parameters: list[nn.Parameter]) -> Step:
        """Return the optimizer's step for some parameters; its state starts empty."""
        name = "nesterov" if self.nesterov else self.optimizer
        return optimizer_step(name, parameters, self.momentum, self.weight_decay)


def effective_steps(num_steps: int, momentum: float, nesterov: bool = False) -> float:
    """Return a_n: the update of n momentum steps on a constant gradient, in units of rate x gradient.

    Source: specification of CA-HFP's `variation` estimator, a_n = (n - mu (1 - mu^n) / (1 - mu)) / (1 - mu).
    A step of Nesterov's momentum moves by the gradient and mu times the velocity, so n of them by n + mu a_n.

    >>> effective_steps(3, 0.0), round(effective_steps(2, 0.5), 6), round(effective_steps(2, 0.5, nesterov=True), 6)
    (3.0, 2.5, 3.25)
    """
    moved = (num_steps - momentum * (1 - momentum**num_steps) / (1 - momentum)) / (1 - momentum)
    return num_steps + momentum * moved if nesterov else moved


@dataclass(frozen=True, slots=True)
class Trained:
    """Mean loss per row over all epochs (not finite if training diverged, 0 without an epoch), and epochs trained."""

    loss: float
    epochs: int


def train(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    task: Task,
    local: LocalTraining,
    learning_rate: float,
    order: np.random.Generator,
    hooks: LocalHooks | None = None,
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Trained:
    """Train a model in place.

    Args:
        model: The client's submodel.
        inputs: `(rows, ...)`, or several tensors by name.
        targets: `(rows, ...)`.
        task: Its training loss is minimised, unless a hook replaces the loss.
        local: Optimizer, epochs and batch size.
        learning_rate: Step size of this round.
        order: Shuffles the rows anew in every epoch.
        hooks: Functions of the method that take part.
        augment: Applied to the inputs of every batch.
    """
    hooks = hooks or LocalHooks()
    loss_of = hooks.loss or batch_loss(task.minimised)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    descent = descent_of(model, parameters, learning_rate, local, hooks)
    batches = batch_slices(len(targets), local.batch_size)
    inputs = laid_out(inputs, local.memory_format)
    model.train()
    total = torch.zeros((), dtype=torch.float64, device=targets.device)
    counted, epochs = max(1, task.count(targets)), 0
    for _ in range(local.epochs):
        before = total.clone()
        shuffled = torch.from_numpy(order.permutation(len(targets)))
        for batch in batches:
            rows = shuffled[batch]
            batch_inputs, batch_targets = take(inputs, rows), targets[rows]
            if augment is not None and isinstance(batch_inputs, torch.Tensor):
                batch_inputs = augment(batch_inputs)
            with computing_on(local.memory_format), descent.watching():
                with computing_in(local.precision, targets):
                    loss = loss_of(model, batch_inputs, batch_targets)
                descent.step(loss)
            for after_step in hooks.after_step:
                after_step()
            total += loss.detach().double() * task.count(batch_targets)
        epochs += 1
        mean_loss = float(total - before) / counted
        if not np.isfinite(mean_loss) or (hooks.stop_after_epoch and hooks.stop_after_epoch(mean_loss)):
            break
    return Trained(float(total) / (counted * max(1, epochs)), epochs)


def batch_loss(loss: Loss) -> BatchLoss:
    """Return a task's loss as a function of model, inputs and targets."""
    return partial(_mean_loss, loss)


def _mean_loss(loss: Loss, model: nn.Module, inputs: Inputs, targets: torch.Tensor) -> torch.Tensor:
    return loss(predict(model, inputs), targets)


def descent_of(
    model: nn.Module, parameters: list[nn.Parameter], learning_rate: float, local: LocalTraining, hooks: LocalHooks
) -> Descent:
    """Choose how a client descends: fused, if only plain SGD reads the gradients of a chain of PyTorch's layers."""
    is_plain = local.optimizer == "sgd" and not (local.momentum or local.weight_decay or local.clip_norm)
    is_seen = hooks.observe or hooks.correct or hooks.loss is not None or hooks.rate is not None
    on_cpu = local.precision == "float32" and all(parameter.is_cpu for parameter in parameters)
    if is_plain and not is_seen and on_cpu and is_chain(model):
        return PlainDescent(model, parameters, learning_rate)
    return HookedDescent(parameters, local.step_of(parameters), learning_rate, local.clip_norm, hooks)


def computing_in(precision: str, targets: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which layers compute in a precision, on the device of the targets."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(targets.device.type, torch.bfloat16)
