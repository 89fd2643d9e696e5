"""Further metrics of classification, from counts that add up over rows: of classes, and of top-k hits."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from raysim.config.metric import PER_CLASS, TOP
from raysim.core.errors import SettingError
from raysim.task.task import Further, Sums

CLASS_COUNTS = "class counts"
"""The sums from which several metrics follow."""


def further_metrics(names: Sequence[str], num_classes: int) -> dict[str, Further]:
    """Return metrics by the name of the sums that they follow from.

    Args:
        names: `balanced_accuracy`, `macro_f1`, `per_class`, or `top_` with a number.
        num_classes: Number of classes.

    Raises:
        SettingError: If a top-k accuracy is 1 with this number of classes, whatever the model.
    """
    found: dict[str, Further] = {}
    for name in names:
        if name.startswith(TOP):
            k = int(name.removeprefix(TOP))
            if k >= num_classes:
                raise SettingError(
                    f"task.metrics={name!r} is not allowed with {num_classes} classes; allowed: {TOP}2 to "
                    f"{TOP}{num_classes - 1}"
                )
            found[name] = Further(partial(is_among_top, k=k), partial(share_of_rows, name=name), (name,))
    of_counts = tuple(name for name in names if not name.startswith(TOP))
    if of_counts:
        found[CLASS_COUNTS] = from_class_counts(class_counts, of_counts, num_classes)
    return found


def from_class_counts(
    terms: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], names: tuple[str, ...], num_classes: int
) -> Further:
    """Return metrics that follow from the counts of `class_counts`.

    Args:
        terms: Counts the classes.
        names: `balanced_accuracy`, `macro_f1` or `per_class`.
        num_classes: Number of classes.
    """
    known = tuple(of_class_counts(np.ones(3 * num_classes), 1, names))
    return Further(terms, partial(of_class_counts, names=names), known)


def is_among_top(logits: torch.Tensor, classes: torch.Tensor, k: int) -> torch.Tensor:
    """Return whether fewer than k logits are greater than that of the row's class, `(rows,)`."""
    own = logits.gather(1, classes[:, None])
    return ((logits > own).sum(1) < k) & ~own[:, 0].isnan()


def share_of_rows(total: Sums, rows: int, name: str) -> dict[str, float]:
    """Return a sum over the rows divided by their number."""
    return {name: float(total) / rows}


def class_counts(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return for each class whether the row has it, is predicted to have it, and both: `(rows, 3 x classes)`.

    Summed over rows they are the row sums, column sums and diagonal of the confusion matrix.
    """
    num_classes = logits.shape[1]
    predicted, actual = (functional.one_hot(each, num_classes) for each in (logits.argmax(1), classes))
    return torch.cat([actual, predicted, actual * predicted], dim=1)


def of_class_counts(counts: Sums, rows: int, names: Sequence[str]) -> dict[str, float]:
    """Return metrics from the counts of `class_counts`, summed over the rows.

    Recall and balanced accuracy leave out classes without a row, precision those never predicted, F1 those with
    neither, as scikit-learn's `balanced_accuracy_score` and `f1_score(average="macro")` do.
    """
    recall, precision, f1 = class_metrics(counts)
    found = {"balanced_accuracy": {"balanced_accuracy": _mean(recall)}, "macro_f1": {"macro_f1": _mean(f1)}}
    found[PER_CLASS] = {
        f"{name}/{index}": float(value)
        for name, values in (("recall", recall), ("precision", precision), ("f1", f1))
        for index, value in enumerate(values)
    }
    return {name: value for chosen in names for name, value in found[chosen].items()}


def class_metrics(counts: Sums) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return recall, precision and F1 of each class, `(classes,)`; NaN where they are not defined.

    >>> [values.tolist() for values in class_metrics(np.array([2, 2, 0, 3, 1, 0, 2, 1, 0]))]
    [[1.0, 0.5, nan], [0.6666666666666666, 1.0, nan], [0.8, 0.6666666666666666, nan]]
    """
    actual, predicted, both = np.asarray(counts, np.float64).reshape(3, -1)
    with np.errstate(invalid="ignore"):
        return both / actual, both / predicted, 2 * both / (actual + predicted)


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def is_per_class(name: str) -> bool:
    """Whether a metric is one of the many of `per_class`."""
    return "/" in name


def names_of(further: Mapping[str, Further]) -> list[str]:
    """Return the names of all metrics that follow from some sums."""
    return [name for each in further.values() for name in each.names]
