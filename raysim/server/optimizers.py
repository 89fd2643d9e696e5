"""Server optimizers step along the cohort's aggregated change as a gradient (Reddi et al., arXiv 2003.00295)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from raysim.core.tensors import Params
from raysim.pruning.coverage import Coverage


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """How the server steps; the fields are those of the `server` settings."""

    optimizer: str = "sgd"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    @property
    def is_plain(self) -> bool:
        """Whether the server uses the aggregated parameters as they are."""
        return self.optimizer == "sgd" and self.learning_rate == 1.0


Moments = dict[str, torch.Tensor]
StepRule = Callable[[torch.Tensor, Moments, ServerOptimizer], tuple[torch.Tensor, Moments]]
"""From a change, old moments and settings to the step and the new moments."""


def step(
    before: Params,
    after: Params,
    copied: frozenset[str],
    coverage: Coverage,
    memory: Params,
    server: ServerOptimizer,
) -> tuple[Params, Params]:
    """Step from the old parameters along the aggregated change, only where somebody trained.

    Args:
        before: Parameters and buffers before the round.
        after: The aggregated parameters and buffers.
        copied: Keys that are copied from `after`: buffers, and parameters that are not trained.
        coverage: Examples behind each entry.
        memory: The optimizer's state; moments of entries that nobody trained stay as they are.
        server: The optimizer.
    """
    if server.is_plain:
        return after, memory
    stepped, remembered = dict(after), dict(memory)
    for key in (key for key in after if key not in copied):
        change = after[key].double() - before[key].double()
        empty = {"first": torch.zeros_like(change), "second": torch.full_like(change, server.epsilon**2)}
        old = {name: memory.get(f"server/{name}/{key}", empty[name]) for name in empty}
        move, new = STEPS[server.optimizer](change, old, server)
        trained = (coverage[key] > 0).expand(change.shape)
        value = torch.where(trained, before[key].double() + server.learning_rate * move, after[key].double())
        stepped[key] = value.to(before[key].dtype)
        for name, moment in new.items():
            remembered[f"server/{name}/{key}"] = torch.where(trained, moment, old[name])
    return stepped, remembered


def _sgd(change: torch.Tensor, old: Moments, server: ServerOptimizer) -> tuple[torch.Tensor, Moments]:
    return change, {}


def _momentum(change: torch.Tensor, old: Moments, server: ServerOptimizer) -> tuple[torch.Tensor, Moments]:
    """FedAvgM (Hsu et al., arXiv 1909.06335): v <- momentum v + change."""
    velocity = server.momentum * old["first"] + change
    return velocity, {"first": velocity}


def _adam(change: torch.Tensor, old: Moments, server: ServerOptimizer) -> tuple[torch.Tensor, Moments]:
    """FedAdam (algorithm 2): no bias correction, epsilon outside the root, its square the first second moment."""
    second = server.beta2 * old["second"] + (1 - server.beta2) * change**2
    return _adaptive(change, old, second, server)


def _yogi(change: torch.Tensor, old: Moments, server: ServerOptimizer) -> tuple[torch.Tensor, Moments]:
    """FedYogi (algorithm 2): the second moment moves by the sign of its distance from the square."""
    square = change**2
    second = old["second"] - (1 - server.beta2) * square * torch.sign(old["second"] - square)
    return _adaptive(change, old, second, server)


def _adaptive(
    change: torch.Tensor, old: Moments, second: torch.Tensor, server: ServerOptimizer
) -> tuple[torch.Tensor, Moments]:
    first = server.momentum * old["first"] + (1 - server.momentum) * change
    return first / (second.sqrt() + server.epsilon), {"first": first, "second": second}


STEPS: dict[str, StepRule] = {"sgd": _sgd, "momentum": _momentum, "adam": _adam, "yogi": _yogi}
