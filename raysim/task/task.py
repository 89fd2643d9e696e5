"""Define a task: a loss, metrics that are sums over rows, and optional parts that some methods need."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.errors import SettingError


class Loss(Protocol):
    """Compares outputs with targets, as the losses of `torch.nn.functional` do."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor, /, *, reduction: str = "mean") -> torch.Tensor:
        """Return the mean loss of the rows; with another `reduction` their `sum`, or the loss of each (`none`)."""
        ...


Sums = NDArray[Any]
"""Sums over rows: a number `()`, or some `(sums,)`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that follows from sums over rows.

    Attributes:
        terms: Returns each row's terms of the sums, `(rows,)` or `(rows, sums)`, from outputs and targets.
        finish: Returns the metric, from the sums over all rows and the number of rows.
    """

    terms: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    finish: Callable[[Sums, int], float]


@dataclass(frozen=True, slots=True)
class Further:
    """Further metrics of the global model, some of which follow from the same sums over rows.

    Attributes:
        terms: As in `Metric`.
        finish: Returns the metrics by name, from the sums over all rows and the number of rows; NaN: not defined.
    """

    terms: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    finish: Callable[[Sums, int], Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSums:
    """Scores of some rows as sums, so that the scores of several pieces add up to those of all their rows.

    Attributes:
        rows: Number of rows.
        loss: Sum of their losses.
        terms: Sums of their terms by metric.
    """

    rows: int
    loss: float
    terms: Mapping[str, Sums]

    def __add__(self, other: "ScoreSums") -> "ScoreSums":
        """Return the sums over the rows of both."""
        terms = {name: np.asarray(total + other.terms[name]) for name, total in self.terms.items()}
        return ScoreSums(self.rows + other.rows, self.loss + other.loss, terms)

    @property
    def mean_loss(self) -> float:
        """Mean loss of a row."""
        return self.loss / self.rows


@dataclass(frozen=True, slots=True)
class OwnClasses:
    """How a client trains without the classes of which it has no rows.

    Attributes:
        owned: Returns which classes occur, `(classes,)` booleans, from targets and the number of classes.
        loss: Returns a loss that ignores all classes but the owned ones.
    """

    owned: Callable[[torch.Tensor, int], torch.Tensor]
    loss: Callable[[torch.Tensor], Loss]


@dataclass(frozen=True, slots=True)
class Task:
    """A task that models learn: the loss that clients minimise, and the metrics that score them.

    Attributes:
        name: Name in the table.
        loss: The loss that scores models, and that clients minimise where there is no `training_loss`.
        metrics: Metrics beside the loss, by name.
        primary: Name of the leading metric.
        direction: Whether the leading metric should go `up` or `down`.
        own_classes: How a client leaves out classes of which it has no rows; None: the task has no classes.
        distillation: Loss of outputs against those of a teacher; None: the task has none.
        training_loss: The loss that clients minimise, such as a smoothed one; None: `loss`.
        row_weights: Weights of rows in the mean of `training_loss`, `(rows,)`, from targets; None: all are 1.
        further: Further metrics of the global model, by the name of their sums.
        of_clients: Names of the further metrics that each client reports of its submodel.
    """

    name: str
    loss: Loss
    metrics: Mapping[str, Metric]
    primary: str
    direction: Literal["up", "down"]
    own_classes: OwnClasses | None = None
    distillation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    training_loss: Loss | None = None
    row_weights: Callable[[torch.Tensor], torch.Tensor] | None = None
    further: Mapping[str, Further] = field(default_factory=dict)
    of_clients: tuple[str, ...] = ()

    @property
    def minimised(self) -> Loss:
        """The loss that clients minimise."""
        return self.loss if self.training_loss is None else self.training_loss

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor, with_further: bool = False) -> ScoreSums:
        """Score some rows; with the further metrics of the global model, if wanted."""
        terms = {name: metric.terms(outputs, targets).sum(0) for name, metric in self._scored(with_further).items()}
        loss = float(self.loss(outputs.double(), targets, reduction="sum"))
        return ScoreSums(len(targets), loss, {name: total.cpu().numpy() for name, total in terms.items()})

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
        counted = torch.arange(targets.shape[1]) < torch.from_numpy(counts)[:, None]
        counted = counted.to(targets.device)
        outputs, targets = outputs.flatten(0, 1), targets.flatten(0, 1)

        def summed(values: torch.Tensor) -> Sums:
            """Sum terms `(clients * rows, ...)` over the rows that are scored."""
            values = values.view(*counted.shape, *values.shape[1:])
            mask = counted.view(*counted.shape, *[1] * (values.dim() - 2))
            total: Sums = torch.where(mask, values, 0).sum(1).cpu().numpy()
            return total

        losses = summed(self.loss(outputs.double(), targets, reduction="none"))
        scored = self._scored(bool(self.of_clients))
        terms = {name: summed(metric.terms(outputs, targets)) for name, metric in scored.items()}
        return [
            ScoreSums(int(count), float(losses[index]), {name: total[index] for name, total in terms.items()})
            for index, count in enumerate(counts)
        ]

    def finished(self, sums: ScoreSums) -> dict[str, float]:
        """Return the metrics by name."""
        return {name: float(metric.finish(sums.terms[name], sums.rows)) for name, metric in self.metrics.items()}

    def further_of(self, sums: ScoreSums) -> dict[str, float]:
        """Return the further metrics by name, from sums that have them."""
        return {
            name: value
            for key, metric in self.further.items()
            for name, value in metric.finish(sums.terms[key], sums.rows).items()
        }

    def primary_of(self, sums: ScoreSums) -> float:
        """Return the primary metric."""
        return float(self.metrics[self.primary].finish(sums.terms[self.primary], sums.rows))

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
            f"{setting} is not allowed with task {self.name!r}, which has {what}; allowed: task 'classification'"
        )
