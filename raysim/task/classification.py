"""Classification: one class a row, outputs are logits `(rows, classes)`."""

import torch
from torch.nn import functional

from raysim.task.task import Loss, Metric, OwnClasses, Sums, Task


def is_correct(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return whether the greatest logit is that of the row's class, `(rows,)`."""
    return logits.argmax(dim=1) == classes


def mean(total: Sums, rows: int) -> float:
    """Return a sum over the rows divided by their number."""
    return float(total) / rows


def classes_in(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return which classes occur, `(classes,)` booleans.

    >>> classes_in(torch.tensor([2, 0, 2]), 4).tolist()
    [True, False, True, False]
    """
    owned = torch.zeros(num_classes, dtype=torch.bool, device=targets.device)
    owned[targets] = True
    return owned


def cross_entropy_of_classes(owned: torch.Tensor) -> Loss:
    """Return the cross entropy with zero in place of the logits of classes that are not owned.

    Source: HeteroFL (Diao et al., arXiv 2010.01264), masked cross entropy.
    """

    def loss(logits: torch.Tensor, classes: torch.Tensor, /, *, reduction: str = "mean") -> torch.Tensor:
        return functional.cross_entropy(logits.masked_fill(~owned, 0), classes, reduction=reduction)

    return loss


def cross_entropy_of_teacher(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy against a teacher's probabilities (Hinton et al., arXiv 1503.02531)."""
    return functional.cross_entropy(logits, teacher.softmax(dim=1))


CLASSIFICATION = Task(
    "classification",
    loss=functional.cross_entropy,
    metrics={"accuracy": Metric(is_correct, mean)},
    primary="accuracy",
    direction="up",
    own_classes=OwnClasses(classes_in, cross_entropy_of_classes),
    distillation=cross_entropy_of_teacher,
)
