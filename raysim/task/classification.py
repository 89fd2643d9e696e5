"""Classification: one class a row, outputs are logits `(rows, classes)`."""

from dataclasses import dataclass, replace
from functools import partial
from math import nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from raysim.config.metric import ACCURACY
from raysim.task.metrics import further_metrics
from raysim.task.task import Loss, Metric, OwnClasses, Sums, Task


def is_correct(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return whether the greatest logit is that of the row's class, `(rows,)`."""
    return logits.argmax(dim=1) == classes


def mean(total: Sums, count: int) -> float:
    """Return a sum divided by how much is counted; NaN where nothing is."""
    return float(total) / count if count else nan


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


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropy:
    """Cross entropy with smoothed labels and weighted classes, as `torch.nn.functional.cross_entropy`.

    Attributes:
        label_smoothing: Share of a label that is spread over all classes (arXiv 1512.00567, section 7).
        class_weights: Weight of each class; the mean over rows is divided by the sum of their classes' weights.
        owned: Classes of which the client has rows, `(classes,)`; the other logits count as zero. None: all.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    owned: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, classes: torch.Tensor, /, *, reduction: str = "mean") -> torch.Tensor:
        """Return the loss of logits `(rows, classes)` against the rows' classes `(rows,)`."""
        logits = logits if self.owned is None else logits.masked_fill(~self.owned, 0)
        return functional.cross_entropy(
            logits, classes, self._weights(logits), reduction=reduction, label_smoothing=self.label_smoothing
        )

    def row_weights(self, classes: torch.Tensor) -> torch.Tensor:
        """Return the weight of each row's class, shaped as `classes`."""
        return torch.tensor(self.class_weights, device=classes.device)[classes]

    def _weights(self, logits: torch.Tensor) -> torch.Tensor | None:
        if self.class_weights is None:
            return None
        return torch.tensor(self.class_weights, dtype=logits.dtype, device=logits.device)


def with_training_loss(task: Task, label_smoothing: float, class_weights: tuple[float, ...] | None) -> Task:
    """Return a task whose clients minimise a smoothed or weighted cross entropy; models are scored as before.

    Raises:
        SettingError: If the task has no classes.
    """
    given = f"training.label_smoothing={label_smoothing:g}" if label_smoothing else "training.class_weights"
    loss, own_classes = task.weighted_for(given)(label_smoothing, class_weights), task.own_classes
    if own_classes is not None:
        own_classes = replace(own_classes, loss=partial(CrossEntropy, label_smoothing, class_weights))
    return replace(
        task,
        training_loss=loss,
        own_classes=own_classes,
        row_weights=task.row_weights if class_weights is None else loss.row_weights,
    )


def balanced_weights(counts: NDArray[np.int64]) -> tuple[float, ...]:
    """Return class weights under which all classes weigh alike: rows / (classes x rows of the class).

    Source: King and Zeng (2001), as scikit-learn's `class_weight="balanced"`.

    >>> balanced_weights(np.array([6, 2]))
    (0.6666666666666666, 2.0)
    """
    return tuple((counts.sum() / (len(counts) * counts)).tolist())


def cross_entropy_of_teacher(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy against a teacher's probabilities (Hinton et al., arXiv 1503.02531)."""
    return functional.cross_entropy(logits, teacher.softmax(dim=1))


CLASSIFICATION = Task(
    "classification",
    loss=functional.cross_entropy,
    metrics={"accuracy": Metric(is_correct, mean)},
    primary=ACCURACY,
    own_classes=OwnClasses(classes_in, cross_entropy_of_classes),
    distillation=cross_entropy_of_teacher,
    known={"accuracy": Metric(is_correct, mean)},
    class_metrics=further_metrics,
    weighted=CrossEntropy,
)
