"""Tasks with a class for each position: tokens of a sequence, pixels of an image.

Targets are classes `(rows, positions ...)`. Those that are -100, as PyTorch's losses have it, fill rows up: they
count neither in the loss nor in a metric. Outputs are logits `(rows, classes, positions ...)`, as
`torch.nn.functional.cross_entropy` takes them; those of sequences may also be `(rows, time, classes)`, and are taken
as such where both fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from torch.nn import functional

from raysim.config.metric import TASK_METRICS
from raysim.task.classification import mean
from raysim.task.metrics import CLASS_COUNTS, from_class_counts
from raysim.task.targets import IGNORED
from raysim.task.task import Further, Metric, Sums, Task


def classes_first(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return logits `(rows, classes, positions ...)`.

    >>> classes_first(torch.zeros(2, 5, 9), torch.zeros(2, 5)).shape
    torch.Size([2, 9, 5])
    """
    return outputs.transpose(1, 2) if outputs.dim() == 3 and outputs.shape[:2] == targets.shape else outputs


def is_counted(targets: torch.Tensor) -> torch.Tensor:
    """Return which positions count, shaped as the targets."""
    return targets != IGNORED


def position_weights(targets: torch.Tensor) -> torch.Tensor:
    """Return the weight of each position in the mean of the loss, shaped as the targets: 1 if it counts."""
    return is_counted(targets).float()


@dataclass(frozen=True, slots=True)
class PositionCrossEntropy:
    """Cross entropy of the positions that count, whose mean is taken over all of them in the batch.

    Attributes:
        label_smoothing: As in `CrossEntropy`.
        class_weights: As in `CrossEntropy`; the mean is divided by the sum of the weights of the positions' classes.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor, /, *, reduction: str = "mean") -> torch.Tensor:
        """Return the loss of logits against classes `(rows, positions ...)`; 0 where no position counts."""
        logits = classes_first(outputs, targets)
        weights = None
        if self.class_weights is not None:
            weights = torch.tensor(self.class_weights, dtype=logits.dtype, device=logits.device)
        loss = functional.cross_entropy(
            logits,
            targets,
            weights,
            ignore_index=IGNORED,
            reduction="sum" if reduction == "mean" else reduction,
            label_smoothing=self.label_smoothing,
        )
        if reduction != "mean":
            return loss
        total = self.row_weights(targets).sum()
        return loss / torch.where(total > 0, total, 1)

    def row_weights(self, targets: torch.Tensor, /) -> torch.Tensor:
        """Return the weight of each position in the mean, shaped as the targets; 0 where it does not count."""
        if self.class_weights is None:
            return position_weights(targets)
        weights = torch.tensor(self.class_weights, device=targets.device)
        return weights[targets.clamp(min=0)] * is_counted(targets)


def num_correct(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return in how many of each row's positions the greatest logit is that of the class, `(rows,)`."""
    return (classes_first(outputs, targets).argmax(dim=1) == targets).flatten(1).sum(1)


def summed_cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum of the cross entropy over each row's positions, `(rows,)`."""
    losses: torch.Tensor = PositionCrossEntropy()(outputs.double(), targets, reduction="none")
    return losses.flatten(1).sum(1)


def perplexity(total: Sums, count: int) -> float:
    """Return the exponential of the mean cross entropy, whose sum is given; infinite where 64 bits hold no more."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(total) / count)) if count else nan


def class_counts(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return of each class the positions that have it, are predicted to, and both: `(rows, 3 x classes)`.

    Summed over rows they are the row sums, column sums and diagonal of the confusion matrix.
    """
    logits = classes_first(outputs, targets)
    num_classes, predicted = logits.shape[1], logits.argmax(dim=1).flatten(1)
    actual = targets.flatten(1)
    counts = is_counted(actual)
    actual = actual.clamp(min=0)

    def histogram(classes: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(len(classes), num_classes, dtype=torch.int64, device=classes.device)
        return zeros.scatter_add_(1, classes, chosen.long())

    both = counts & (predicted == actual)
    return torch.cat([histogram(actual, counts), histogram(predicted, counts), histogram(actual, both)], dim=1)


def mean_iou(counts: Sums, count: int) -> float:
    """Return the mean over classes of intersection over union, from the counts of `class_counts`.

    Classes that neither occur nor are predicted are left out, as `sklearn.metrics.jaccard_score` does.

    >>> mean_iou(np.array([2, 2, 0, 3, 1, 0, 2, 1, 0]), 4)
    0.5833333333333333
    """
    actual, predicted, both = np.asarray(counts, np.float64).reshape(3, -1)
    union = actual + predicted - both
    return float((both[union > 0] / union[union > 0]).mean()) if (union > 0).any() else nan


def of_class_counts(names: Sequence[str], num_classes: int) -> Mapping[str, Further]:
    """Return metrics from counts of classes, by the name of their sums."""
    return {CLASS_COUNTS: from_class_counts(class_counts, tuple(names), num_classes)} if names else {}


def needed_outputs(outputs: torch.Tensor, targets: torch.Tensor) -> str | None:
    """Return what outputs must be, if these are not."""
    logits = classes_first(outputs, targets)
    if logits.dim() > 1 and int(targets.max()) >= logits.shape[1] > 0 and logits.dim() == targets.dim() + 1:
        return f"logits of {int(targets.max()) + 1} classes or more"
    if logits.dim() == targets.dim() + 1 and (len(logits), *logits.shape[2:]) == tuple(targets.shape):
        return None
    positions = ", ".join(map(str, targets.shape[1:]))
    sequences = f", or ({len(targets)}, {positions}, classes)" if targets.dim() == 2 else ""
    return f"logits ({len(targets)}, classes, {positions}){sequences}"


def _task(name: str, known: Mapping[str, Metric], has_class_metrics: bool = False) -> Task:
    primary = TASK_METRICS[name][0]
    return Task(
        name,
        loss=PositionCrossEntropy(),
        metrics={primary.name: known[primary.name]},
        primary=primary,
        row_weights=position_weights,
        counted=is_counted,
        known=known,
        class_metrics=of_class_counts if has_class_metrics else None,
        weighted=PositionCrossEntropy,
        outputs=needed_outputs,
    )


NEXT_TOKEN = _task(
    "next-token",
    {"perplexity": Metric(summed_cross_entropy, perplexity), "token_accuracy": Metric(num_correct, mean)},
)
TOKEN_CLASSIFICATION = _task(
    "token-classification",
    {"token_accuracy": Metric(num_correct, mean)},
    has_class_metrics=True,
)
SEGMENTATION = _task(
    "segmentation",
    {"iou": Metric(class_counts, mean_iou), "pixel_accuracy": Metric(num_correct, mean)},
)
