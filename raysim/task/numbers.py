"""Tasks whose targets are numbers or several labels of a row: regression and multi-label classification."""

from math import nan, sqrt

import numpy as np
import torch
from torch.nn import functional

from raysim.config.metric import TASK_METRICS
from raysim.task.classification import mean
from raysim.task.task import Metric, Sums, Task


def reduced(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return losses `(rows,)`, their `mean` or their `sum`."""
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def in_32_bits(outputs: torch.Tensor) -> torch.Tensor:
    """Return outputs in 32 bits where they have less, as PyTorch's own losses have them in mixed precision."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return outputs minus targets, `(rows, numbers)`; outputs `(rows, 1)` fit to targets `(rows,)`."""
    outputs = in_32_bits(outputs)
    return outputs.reshape(len(targets), -1) - targets.to(outputs.dtype).reshape(len(targets), -1)


def squared_error(outputs: torch.Tensor, targets: torch.Tensor, /, *, reduction: str = "mean") -> torch.Tensor:
    """Return the squared error of each row, the mean over its numbers."""
    return reduced(errors(outputs, targets).square().mean(1), reduction)


def squared_errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the squared error of each row in 64 bits, `(rows,)`."""
    return squared_error(outputs.double(), targets, reduction="none")


def root_mean(total: Sums, count: int) -> float:
    """Return the square root of a mean."""
    return sqrt(float(total) / count) if count else nan


def absolute_errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the absolute error of each row, the mean over its numbers, `(rows,)`."""
    return errors(outputs.double(), targets).abs().mean(1)


def squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return of each row the squared errors, the targets and their squares, `(rows, 3 x numbers)`."""
    numbers = targets.double().reshape(len(targets), -1)
    return torch.cat([errors(outputs.double(), targets).square(), numbers, numbers.square()], dim=1)


def r2(total: Sums, count: int) -> float:
    """Return the coefficient of determination, the mean over the numbers of a row; NaN with less than two rows.

    As scikit-learn's `r2_score`: of a number that is the same in all rows it is 1 if all are met, else 0.
    """
    if count < 2:
        return nan
    missed, targets, squared = np.asarray(total, np.float64).reshape(3, -1)
    spread = np.maximum(squared - targets**2 / count, 0.0)
    spread = np.where(spread <= 1e-14 * squared, 0.0, spread)  # what rounding leaves of a constant
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(spread > 0, 1 - missed / spread, np.where(missed > 0, 0.0, 1.0))
    return float(found.mean())


def binary_cross_entropy(outputs: torch.Tensor, targets: torch.Tensor, /, *, reduction: str = "mean") -> torch.Tensor:
    """Return the binary cross entropy of each row's logits, the mean over its labels."""
    outputs = in_32_bits(outputs)
    losses = functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
    return reduced(losses.mean(1), reduction)


def label_counts(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return how many labels of each row are found, found wrongly, and missed, `(rows, 3)`; logits above 0 find."""
    found, given = outputs > 0, targets > 0
    return torch.stack([(found & given).sum(1), (found & ~given).sum(1), (~found & given).sum(1)], dim=1)


def micro_f1(counts: Sums, _count: int) -> float:
    """Return the F1 of all labels of all rows together; 0 where there are none, as in scikit-learn.

    >>> micro_f1(np.array([2, 1, 1]), 4)
    0.6666666666666666
    """
    right, wrong, missed = np.asarray(counts, np.float64)
    return float(2 * right / (2 * right + wrong + missed)) if right + wrong + missed else 0.0


def is_subset(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return whether all labels of a row are right, `(rows,)`."""
    return ((outputs > 0) == (targets > 0)).all(1)


def outputs_of_numbers(outputs: torch.Tensor, targets: torch.Tensor) -> str | None:
    """Return what outputs of a regression must be, if these are not."""
    numbers = targets[0].numel()
    fits = outputs.shape == targets.shape or (numbers == 1 and outputs.shape == (len(targets), 1))
    return None if fits else f"numbers ({len(targets)}, {numbers})"


def outputs_of_labels(outputs: torch.Tensor, targets: torch.Tensor) -> str | None:
    """Return what outputs of several labels must be, if these are not."""
    return None if outputs.shape == targets.shape else f"logits {tuple(targets.shape)}"


_ROOT_MEAN_SQUARE, _F1 = Metric(squared_errors, root_mean), Metric(label_counts, micro_f1)

REGRESSION = Task(
    "regression",
    loss=squared_error,
    metrics={"rmse": _ROOT_MEAN_SQUARE},
    primary=TASK_METRICS["regression"][0],
    known={"rmse": _ROOT_MEAN_SQUARE, "mae": Metric(absolute_errors, mean), "r2": Metric(squares, r2)},
    outputs=outputs_of_numbers,
)
MULTILABEL = Task(
    "multilabel",
    loss=binary_cross_entropy,
    metrics={"f1": _F1},
    primary=TASK_METRICS["multilabel"][0],
    known={"f1": _F1, "subset_accuracy": Metric(is_subset, mean)},
    outputs=outputs_of_labels,
)
