"""Local training of one client: plain PyTorch on one thread."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.adam import adam

from raysim.client.fused_sgd import PlainDescent, is_chain
from raysim.client.memory_format import computing_on, laid_out
from raysim.core.tensors import Params
from raysim.data.batches import batch_slices

BatchLoss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""Mean loss of a batch from model, inputs and labels."""

GradientObserver = Callable[[list[torch.Tensor]], None]

Step = Callable[[list[torch.Tensor]], None]


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """How every client trains; the fields are those of the `training` settings."""

    optimizer: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_decay: float = 1.0
    clip_norm: float | None = None
    epochs: int = 1
    batch_size: int = 10
    precision: str = "float32"
    memory_format: str = "contiguous"

    def learning_rate_in(self, round: int) -> float:
        """Return the step size of a round, counted from 1; what is trained before has that of round 1."""
        return self.learning_rate * self.lr_decay ** max(round - 1, 0)

    @property
    def optimizer_buffers(self) -> int:
        """How many numbers the optimizer keeps for every parameter."""
        return 2 if self.optimizer == "adam" else int(self.momentum > 0)

    def num_steps(self, num_examples: int) -> int:
        """Return how many optimizer steps a client takes in a round."""
        return self.epochs * len(batch_slices(num_examples, self.batch_size))


def effective_steps(num_steps: int, momentum: float) -> float:
    """Return a_n: the update of n momentum steps on a constant gradient, in units of rate x gradient.

    Source: specification of CA-HFP's `variation` estimator, a_n = (n - mu (1 - mu^n) / (1 - mu)) / (1 - mu).

    >>> effective_steps(3, 0.0), round(effective_steps(2, 0.5), 6)
    (3.0, 2.5)
    """
    return (num_steps - momentum * (1 - momentum**num_steps) / (1 - momentum)) / (1 - momentum)


def cross_entropy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of a batch."""
    return nn.functional.cross_entropy(model(inputs), labels)


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What a hook reports when its client has trained.

    Attributes:
        sums: To be added up over the clients exactly: by name, values in the submodel's coordinates and a weight.
        channel_sums: Numbers per channel, `(sums, num_units)`; not added up.
        memory: What is to be remembered of the client.
    """

    sums: Mapping[str, tuple[Params, float]] = field(default_factory=dict)
    channel_sums: NDArray[np.float64] | None = None
    memory: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LocalHooks:
    """What a method does inside a client's training.

    Attributes:
        loss: Mean loss of a batch; one hook may replace it.
        observe: Called with each step's gradients as they are.
        correct: Replace each step's gradients, before clipping.
        after_step: Called after each step.
        stop_after_epoch: From an epoch's mean loss: whether to stop early.
        finish: Called when training has ended.
    """

    loss: BatchLoss = cross_entropy
    observe: tuple[GradientObserver, ...] = ()
    correct: tuple[Callable[[list[torch.Tensor]], list[torch.Tensor]], ...] = ()
    after_step: tuple[Callable[[], None], ...] = ()
    stop_after_epoch: Callable[[float], bool] | None = None
    finish: tuple[Callable[[], Report], ...] = ()


def compose(several: Sequence[LocalHooks]) -> LocalHooks:
    """Let several hooks take part in one training, in their order.

    Raises:
        ValueError: If two replace the loss, or two want to stop early.
    """
    losses = [hooks.loss for hooks in several if hooks.loss is not cross_entropy]
    stops = [hooks.stop_after_epoch for hooks in several if hooks.stop_after_epoch is not None]
    if len(losses) > 1 or len(stops) > 1:
        raise ValueError("only one local rule can replace the loss, and only one can stop early")
    return LocalHooks(
        loss=losses[0] if losses else cross_entropy,
        observe=sum((hooks.observe for hooks in several), ()),
        correct=sum((hooks.correct for hooks in several), ()),
        after_step=sum((hooks.after_step for hooks in several), ()),
        stop_after_epoch=stops[0] if stops else None,
        finish=sum((hooks.finish for hooks in several), ()),
    )


@dataclass(frozen=True, slots=True)
class Trained:
    """Mean loss per row over all epochs (not finite if training diverged), and epochs trained."""

    loss: float
    epochs: int


class GradientMoments:
    """Observes a client's minibatch gradients; their means estimate gradient and empirical Fisher."""

    def __init__(self) -> None:
        self._steps = 0
        self._sums: list[torch.Tensor] = []
        self._squares: list[torch.Tensor] = []

    def __call__(self, gradients: list[torch.Tensor]) -> None:
        """Add one step's gradients."""
        if self._steps == 0:
            self._sums = [gradient.clone() for gradient in gradients]
            self._squares = [gradient**2 for gradient in gradients]
        else:
            torch._foreach_add_(self._sums, gradients)
            torch._foreach_addcmul_(self._squares, gradients, gradients)
        self._steps += 1

    def means(self, model: nn.Module) -> tuple[Params, Params]:
        """Return mean gradient and mean squared gradient by the model's parameter names."""
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        means = {name: total / self._steps for name, total in zip(names, self._sums, strict=True)}
        squares = {name: total / self._steps for name, total in zip(names, self._squares, strict=True)}
        return means, squares


def train(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    local: LocalTraining,
    learning_rate: float,
    order: np.random.Generator,
    hooks: LocalHooks | None = None,
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Trained:
    """Train a model in place.

    Args:
        model: The client's submodel.
        inputs: `(rows, ...)`.
        labels: `(rows,)`.
        local: Optimizer, epochs and batch size.
        learning_rate: Step size of this round.
        order: Shuffles the rows anew in every epoch.
        hooks: What a method does inside the training.
        augment: Applied to the inputs of every batch.
    """
    hooks = hooks or LocalHooks()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    descent = descent_of(model, parameters, learning_rate, local, hooks)
    batches = batch_slices(len(labels), local.batch_size)
    inputs = laid_out(inputs, local.memory_format)
    model.train()
    total = torch.zeros((), dtype=torch.float64, device=inputs.device)
    epochs = 0
    for _ in range(local.epochs):
        before = total.clone()
        shuffled = torch.from_numpy(order.permutation(len(labels)))
        for batch in batches:
            rows = shuffled[batch]
            batch_inputs = inputs[rows] if augment is None else augment(inputs[rows])
            with computing_on(local.memory_format), descent.watching():
                with computing_in(local.precision, batch_inputs):
                    loss = hooks.loss(model, batch_inputs, labels[rows])
                descent.step(loss)
            for after_step in hooks.after_step:
                after_step()
            total += loss.detach().double() * len(rows)
        epochs += 1
        mean_loss = float(total - before) / len(labels)
        if not np.isfinite(mean_loss) or (hooks.stop_after_epoch and hooks.stop_after_epoch(mean_loss)):
            break
    return Trained(float(total) / (len(labels) * epochs), epochs)


class Descent(Protocol):
    """Changes parameters along the gradient of a loss."""

    def watching(self) -> AbstractContextManager[object]:
        """Return the context in which the loss is computed, and the step taken."""
        ...

    def step(self, loss: torch.Tensor) -> None:
        """Change the parameters in place."""
        ...


class HookedDescent:
    """Steps an optimizer along gradients that hooks see and may replace."""

    def __init__(
        self, parameters: list[nn.Parameter], learning_rate: float, local: LocalTraining, hooks: LocalHooks
    ) -> None:
        self._parameters, self._clip_norm, self._hooks = parameters, local.clip_norm, hooks
        self._step = optimizer_step(parameters, learning_rate, local)

    def watching(self) -> AbstractContextManager[object]:
        """Return a context that does nothing."""
        return nullcontext()

    def step(self, loss: torch.Tensor) -> None:
        """Change the parameters in place."""
        gradients = list(torch.autograd.grad(loss, self._parameters, materialize_grads=True))
        for observe in self._hooks.observe:
            observe(gradients)
        for correct in self._hooks.correct:
            gradients = correct(gradients)
        if self._clip_norm is not None:
            gradients = clipped(gradients, self._clip_norm)
        self._step(gradients)


def descent_of(
    model: nn.Module, parameters: list[nn.Parameter], learning_rate: float, local: LocalTraining, hooks: LocalHooks
) -> Descent:
    """Return how a client descends: plainly where nothing but the step needs gradients, and no code but PyTorch's."""
    is_plain = local.optimizer == "sgd" and not (local.momentum or local.weight_decay or local.clip_norm)
    is_seen = hooks.observe or hooks.correct or hooks.loss is not cross_entropy
    on_cpu = local.precision == "float32" and all(parameter.is_cpu for parameter in parameters)
    if is_plain and not is_seen and on_cpu and is_chain(model):
        return PlainDescent(model, parameters, learning_rate)
    return HookedDescent(parameters, learning_rate, local, hooks)


def computing_in(precision: str, inputs: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which layers compute in a precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(inputs.device.type, torch.bfloat16)


def clipped(gradients: list[torch.Tensor], max_norm: float) -> list[torch.Tensor]:
    """Return gradients scaled so that their common norm is at most `max_norm`."""
    norm = nn.utils.get_total_norm(gradients)
    return list(torch._foreach_mul(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0)))


def optimizer_step(parameters: list[nn.Parameter], learning_rate: float, local: LocalTraining) -> Step:
    """Return what steps along gradients, in place; its state starts empty."""
    return _OPTIMIZERS[local.optimizer](parameters, learning_rate, local)


def _sgd(parameters: list[nn.Parameter], learning_rate: float, local: LocalTraining) -> Step:
    weights: list[torch.Tensor] = [parameter.data for parameter in parameters]
    velocity: list[torch.Tensor] = []

    def step(gradients: list[torch.Tensor]) -> None:
        if local.weight_decay:
            gradients = list(torch._foreach_add(gradients, weights, alpha=local.weight_decay))
        if local.momentum and not velocity:
            velocity.extend(gradient.clone() for gradient in gradients)
        elif local.momentum:
            torch._foreach_mul_(velocity, local.momentum)
            torch._foreach_add_(velocity, gradients)
        torch._foreach_add_(weights, velocity or gradients, alpha=-learning_rate)

    return step


def _adam(parameters: list[nn.Parameter], learning_rate: float, local: LocalTraining) -> Step:
    weights: list[torch.Tensor] = [parameter.data for parameter in parameters]
    means, squares = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
    counts = [torch.zeros(()) for _ in weights]

    def step(gradients: list[torch.Tensor]) -> None:
        adam(
            weights, gradients, means, squares, [], counts, foreach=True, amsgrad=False,
            beta1=local.momentum, beta2=0.999, lr=learning_rate, weight_decay=local.weight_decay,
            eps=1e-8, maximize=False,
        )  # fmt: skip

    return step


_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float, LocalTraining], Step]] = {
    "sgd": _sgd,
    "adam": _adam,
}
"""As functions: PyTorch's classes import its compiler, 1.5 s in every actor."""
