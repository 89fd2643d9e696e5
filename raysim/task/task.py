"""Define a task: a loss, metrics that are sums over rows, and optional parts that some methods need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.config.metric import PrimaryMetric
from raysim.core.errors import SettingError


class Loss(Protocol):
    """Compares outputs with targets, as the losses of `torch.nn.functional` do."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor, /, *, reduction: str = "mean") -> torch.Tensor:
        """Return the mean loss of what is counted; with another `reduction` the `sum`, or each loss (`none`)."""
        ...


Sums = NDArray[Any]
"""Sums over rows: a number `()`, or some `(sums,)`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that follows from sums over rows.

    Attributes:
        terms: Returns each row's terms of the sums, `(rows,)` or `(rows, sums)`, from outputs and targets.
        finish: Returns the metric, from the sums over all rows and how much is counted (`Task.count`).
    """

    terms: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    finish: Callable[[Sums, int], float]


@dataclass(frozen=True, slots=True)
class Further:
    """Further metrics of the global model, some of which follow from the same sums over rows.

    Attributes:
        terms: As in `Metric`.
        finish: Returns the metrics by name, from the sums over all rows and how much is counted; NaN: not defined.
        names: Names of the metrics.
    """

    terms: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    finish: Callable[[Sums, int], Mapping[str, float]]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSums:
    """Scores of some rows as sums, so that the scores of several pieces add up to those of all their rows.

    Attributes:
        count: Number of rows, or of their counted positions where the task has positions.
        loss: Sum of the losses of these.
        terms: Sums of the rows' terms by metric.
    """

    count: int
    loss: float
    terms: Mapping[str, Sums]

    def __add__(self, other: "ScoreSums") -> "ScoreSums":
        """Return the sums over the rows of both."""
        terms = {name: np.asarray(total + other.terms[name]) for name, total in self.terms.items()}
        return ScoreSums(self.count + other.count, self.loss + other.loss, terms)

    @property
    def mean_loss(self) -> float:
        """Mean loss of a row, or of a position; NaN where none counts."""
        return self.loss / self.count if self.count else nan


@dataclass(frozen=True, slots=True)
class OwnClasses:
    """How a client trains without the classes of which it has no rows.

    Attributes:
        owned: Returns which classes occur, `(classes,)` booleans, from targets and the number of classes.
        loss: Returns a loss that ignores all classes but the owned ones.
    """

    owned: Callable[[torch.Tensor, int], torch.Tensor]
    loss: Callable[[torch.Tensor], Loss]


class WeightedLoss(Loss, Protocol):
    """A loss whose mean weights its parts."""

    def row_weights(self, targets: torch.Tensor, /) -> torch.Tensor:
        """Return the weights of the parts, shaped as the targets."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """A task that models learn: the loss that clients minimise, and the metrics that score them.

    Attributes:
        name: Name in the table.
        loss: The loss that scores models, and that clients minimise where there is no `training_loss`.
        metrics: Metrics beside the loss that every score has, by name: the primary one.
        primary: The metric by which models are compared.
        own_classes: How a client leaves out classes of which it has no rows; None: the task has no such classes.
        distillation: Loss of outputs against those of a teacher; None: the task has none.
        training_loss: The loss that clients minimise, such as a smoothed one; None: `loss`.
        row_weights: Weights in the mean of the loss that clients minimise, shaped as the targets that it takes one
            loss of each: `(rows,)` or `(rows, positions ...)`, from targets; None: all are 1.
        further: Further metrics of the global model, by the name of their sums.
        of_clients: Names of the further metrics that each client reports of its submodel.
        counted: Returns which positions count, shaped as the targets, from these; None: every row counts once.
        known: Metrics of the task that follow from sums of their own, by name.
        class_metrics: Returns metrics from counts of classes, by their names and the number of classes; None: the
            task has none.
        weighted: Returns a loss with smoothed labels and weighted classes, from the smoothing and the weights; None:
            the task has no classes.
        outputs: Returns what outputs must be if some are not, from these and targets; None: they are. None: anything.
        packs: Whether its loss can be computed for several clients at once (`torch.func.vmap`).
    """

    name: str
    loss: Loss
    metrics: Mapping[str, Metric]
    primary: PrimaryMetric
    own_classes: OwnClasses | None = None
    distillation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    training_loss: Loss | None = None
    row_weights: Callable[[torch.Tensor], torch.Tensor] | None = None
    further: Mapping[str, Further] = field(default_factory=dict)
    of_clients: tuple[str, ...] = ()
    counted: Callable[[torch.Tensor], torch.Tensor] | None = None
    known: Mapping[str, Metric] = field(default_factory=dict)
    class_metrics: Callable[[Sequence[str], int], Mapping[str, Further]] | None = None
    weighted: Callable[[float, tuple[float, ...] | None], WeightedLoss] | None = None
    outputs: Callable[[torch.Tensor, torch.Tensor], str | None] | None = None
    packs: bool = True

    @property
    def minimised(self) -> Loss:
        """The loss that clients minimise."""
        return self.loss if self.training_loss is None else self.training_loss

    def count(self, targets: torch.Tensor) -> int:
        """Return how much is counted in some rows: the rows, or their positions that count."""
        return len(targets) if self.counted is None else int(self.counted(targets).sum())

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor, with_further: bool = False) -> ScoreSums:
        """Score some rows; with the further metrics of the global model, if wanted."""
        terms = {name: metric.terms(outputs, targets).sum(0) for name, metric in self._scored(with_further).items()}
        loss = float(self.loss(outputs.double(), targets, reduction="sum"))
        return ScoreSums(self.count(targets), loss, {name: total.cpu().numpy() for name, total in terms.items()})

    def _scored(self, with_further: bool) -> dict[str, Metric | Further]:
        return {**self.metrics, **(self.further if with_further else {})}

    def sums_of_each(
        self, outputs: torch.Tensor, targets: torch.Tensor, counts: NDArray[np.int64]
    ) -> list[ScoreSums]:
        """Score the first rows of each of several clients, by the further metrics, too, if clients report any.

        Args:
            outputs: Outputs of each client's own model, `(clients, rows, ...)`.
            targets: `(clients, rows, ...)`.
            counts: How many of its rows are scored, `(clients,)`.
        """
        scored_rows = torch.arange(targets.shape[1]) < torch.from_numpy(counts)[:, None]
        scored_rows = scored_rows.to(targets.device)
        outputs, targets = outputs.flatten(0, 1), targets.flatten(0, 1)

        def summed(values: torch.Tensor) -> Sums:
            """Sum terms `(clients * rows, ...)` over the rows that are scored."""
            values = values.reshape(*scored_rows.shape, *values.shape[1:])
            mask = scored_rows.view(*scored_rows.shape, *[1] * (values.dim() - 2))
            total: Sums = torch.where(mask, values, 0).sum(1).cpu().numpy()
            return total

        each = self.loss(outputs.double(), targets, reduction="none")
        losses = summed(each if each.dim() == 1 else each.flatten(1).sum(1))
        if self.counted is not None:
            counts = summed(self.counted(targets).flatten(1).sum(1))
        scored = self._scored(bool(self.of_clients))
        terms = {name: summed(metric.terms(outputs, targets)) for name, metric in scored.items()}
        return [
            ScoreSums(int(count), float(losses[index]), {name: total[index] for name, total in terms.items()})
            for index, count in enumerate(counts)
        ]

    def finished(self, sums: ScoreSums) -> dict[str, float]:
        """Return the metrics by name."""
        return {name: float(metric.finish(sums.terms[name], sums.count)) for name, metric in self.metrics.items()}

    def further_of(self, sums: ScoreSums) -> dict[str, float]:
        """Return the further metrics by name, from sums that have them."""
        return {
            name: value
            for key, metric in self.further.items()
            for name, value in metric.finish(sums.terms[key], sums.count).items()
        }

    def primary_of(self, sums: ScoreSums) -> float:
        """Return the primary metric."""
        name = self.primary.name
        return float(self.metrics[name].finish(sums.terms[name], sums.count))

    def weighted_for(self, setting: str) -> Callable[[float, tuple[float, ...] | None], WeightedLoss]:
        """Return how losses with smoothed labels and weighted classes are made.

        Args:
            setting: The setting that needs it, with its value.

        Raises:
            SettingError: If the task has no classes.
        """
        if self.weighted is None:
            raise SettingError(
                f"{setting} is not allowed with task {self.name!r}, which has no classes in its loss; "
                "allowed: tasks with classes, with task.loss=null"
            )
        return self.weighted

    def own_classes_for(self, setting: str) -> OwnClasses:
        """Return how a client leaves out classes it has no rows of.

        Args:
            setting: The setting that needs it, with its value.

        Raises:
            SettingError: If the task has no classes.
        """
        if self.own_classes is None:
            raise self._lacks(setting, "no classes that a client could leave out")
        return self.own_classes

    def distillation_for(self, setting: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the loss of outputs against those of a teacher.

        Args:
            setting: The setting that needs it, with its value.

        Raises:
            SettingError: If the task has none.
        """
        if self.distillation is None:
            raise self._lacks(setting, "no loss against the outputs of a teacher")
        return self.distillation

    def _lacks(self, setting: str, what: str) -> SettingError:
        return SettingError(
            f"{setting} is not allowed with task {self.name!r}, which has {what}; allowed: task 'classification' "
            "with task.loss=null"
        )
