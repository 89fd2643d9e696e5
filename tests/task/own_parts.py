"""A user's own loss, metrics and models, which tests name by dotted paths."""

import torch
from torch.nn import functional

from raysim.task.positions import IGNORED
from raysim.task.task import Metric


def brier(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The squared distance of the probabilities from the class, `(rows,)`; lower is better."""
    return (logits.softmax(1) - functional.one_hot(classes, logits.shape[1])).square().sum(1)


def hits(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Accuracy once more."""
    return logits.argmax(1) == classes


def _squares(logits: torch.Tensor, _classes: torch.Tensor) -> torch.Tensor:
    return torch.stack([logits.double().square().sum(1), logits.double().sum(1)], dim=1)


logit_spread = Metric(_squares, lambda sums, count: float(sums[0] / count - (sums[1] / count) ** 2))
"""A metric that is no mean."""


def focal(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The focal loss of each row (Lin et al., arXiv 1708.02002), with gamma 1."""
    losses = functional.cross_entropy(logits, classes, reduction="none")
    return (1 - (-losses).exp()) * losses


def share(_outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The share of a row's positions that count."""
    return (targets != IGNORED).float().mean(1)


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss of each position."""
    return (outputs[..., 0] - targets).square()


def summed(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """One number for all rows, which is not allowed."""
    return functional.cross_entropy(logits, classes)


def failing(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Raises."""
    raise RuntimeError("no such metric")


number = 3
