"""A user's own loss and metrics, by dotted paths, and how a task is scored by the metrics that the settings name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import Any

import torch

from raysim.config.metric import PER_CLASS, PrimaryMetric, name_of
from raysim.core.errors import SettingError
from raysim.core.plugins import calling, is_dotted, load, parameters_of
from raysim.task.metrics import names_of
from raysim.task.task import Further, Loss, Metric, Sums, Task


@dataclass(frozen=True, slots=True, eq=False)
class OwnLoss:
    """A loss of the user's.

    Attributes:
        path: Its dotted path.
        function: Returns the loss of each row or position.
        takes_reduction: Whether it takes `reduction`, as the losses of `torch.nn.functional`.
        counted: Which positions count, as in `Task`; None: all rows do.
    """

    path: str
    function: Callable[..., torch.Tensor]
    takes_reduction: bool
    counted: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor, /, *, reduction: str = "mean") -> torch.Tensor:
        """Return the mean loss of what counts; with another `reduction` the `sum`, or each loss (`none`)."""
        losses = self.each(outputs, targets)
        counts = None if self.counted is None else self.counted(targets)
        losses = losses if counts is None else torch.where(counts, losses, 0)
        if reduction == "none":
            return losses
        if reduction == "sum":
            return losses.sum()
        return losses.mean() if counts is None else losses.sum() / counts.sum().clamp(min=1)

    def each(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return what the function returns."""
        return self.function(outputs, targets, **({"reduction": "none"} if self.takes_reduction else {}))


@dataclass(frozen=True, slots=True, eq=False)
class OwnTerms:
    """The terms of a user's metric.

    Attributes:
        setting: The setting that names it.
        path: Its dotted path.
        function: Returns one number for each row, whose mean is the metric; or the terms of a `Metric`.
        is_record: Whether they are those of a `Metric`.
    """

    setting: str
    path: str
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    is_record: bool

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sums of each row: those of a `Metric`, or the number and a 1, `(rows, 2)`."""
        terms = self.function(outputs, targets)
        return terms if self.is_record else torch.stack([terms.double(), torch.ones_like(terms).double()], dim=1)


def mean_of_rows(total: Sums, _count: int) -> float:
    """Return the mean over rows of what `OwnTerms` has summed."""
    return float(total[0] / total[1]) if total[1] else nan


def with_own_loss(task: Task, path: str) -> Task:
    """Return a task with a loss of the user's, which is minimised and scored.

    Raises:
        SettingError: If there is none of this path, or it is no function.
    """
    function = _function("task.loss", path)
    loss: Loss = OwnLoss(path, function, "reduction" in parameters_of("task.loss", path, function), task.counted)
    return replace(task, loss=loss, own_classes=None, weighted=None, row_weights=None, packs=False)


def with_metrics(
    task: Task, metrics: Sequence[str], given: str | None, primary: PrimaryMetric, num_classes: int, of_clients: bool
) -> Task:
    """Return a task that is scored by the metrics of the settings.

    Args:
        task: The task of the table.
        metrics: Names of its further metrics, or dotted paths.
        given: Name or dotted path of the primary metric; None: the task's.
        primary: Its name and direction.
        num_classes: Number of classes of the data.
        of_clients: Whether the further metrics score clients, too.

    Raises:
        SettingError: If a dotted path leads to no metric, or a metric does not fit the number of classes.
    """
    if given is not None:
        metric = _metric_of(task, given, num_classes, "task.primary")
        task = replace(task, primary=primary, metrics={primary.name: metric})
    further: dict[str, Further] = {}
    of_counts = [name for name in metrics if not is_dotted(name) and name not in task.known]
    for name in metrics:
        if name not in of_counts:
            further[name_of(name)] = _as_further(_metric_of(task, name, num_classes, "task.metrics"), name_of(name))
    if of_counts and task.class_metrics is not None:
        further |= task.class_metrics(of_counts, num_classes)
    return replace(task, further=further, of_clients=tuple(names_of(further)) if of_clients else ())


def _metric_of(task: Task, name: str, num_classes: int, setting: str) -> Metric:
    """Return a metric of the task that is one number, or one of the user's."""
    if is_dotted(name):
        return _own_metric(setting, name)
    if name in task.known:
        return task.known[name]
    if task.class_metrics is None or name == PER_CLASS:
        raise SettingError(f"{setting}={name!r} is no metric of task {task.name!r}; known: {', '.join(task.known)}")
    (found,) = task.class_metrics([name], num_classes).values()
    return Metric(found.terms, partial(_one_of, finish=found.finish, name=name))


def _own_metric(setting: str, path: str) -> Metric:
    found = load(setting, path)
    if isinstance(found, Metric):
        return Metric(OwnTerms(setting, path, found.terms, is_record=True), found.finish)
    return Metric(OwnTerms(setting, path, _function(setting, path), is_record=False), mean_of_rows)


def _function(setting: str, path: str) -> Callable[..., torch.Tensor]:
    found = load(setting, path)
    if not callable(found):
        raise SettingError(
            f"{setting}={path!r} is of type {type(found).__name__}; allowed: a function of outputs and targets"
        )
    function: Callable[..., torch.Tensor] = found
    return function


def _one_of(sums: Sums, count: int, finish: Callable[[Sums, int], Mapping[str, float]], name: str) -> float:
    return finish(sums, count)[name]


def _as_further(metric: Metric, name: str) -> Further:
    return Further(metric.terms, partial(_named, finish=metric.finish, name=name), (name,))


def _named(sums: Sums, count: int, finish: Callable[[Sums, int], float], name: str) -> dict[str, float]:
    return {name: finish(sums, count)}


def check_own(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Try a user's loss and metrics on a few outputs.

    Args:
        task: The task.
        outputs: Outputs of the model, `(rows, ...)`.
        targets: Their targets.

    Raises:
        SettingError: If one raises, or returns something else than one number for each row or position.
    """
    if isinstance(task.loss, OwnLoss):
        with calling("task.loss", task.loss.path):
            losses = task.loss.each(outputs, targets)
        _check_shape("task.loss", task.loss.path, losses, tuple(targets.shape[: None if task.counted else 1]))
    scored: list[Metric | Further] = [*task.metrics.values(), *task.further.values()]
    for metric in scored:
        if isinstance(metric.terms, OwnTerms):
            _check_terms(metric.terms, metric.finish, task.count(targets), outputs, targets)


def _check_terms(
    own: OwnTerms, finish: Callable[[Sums, int], Any], count: int, outputs: torch.Tensor, targets: torch.Tensor
) -> None:
    with calling(own.setting, own.path):
        found = own.function(outputs, targets)
    sums = tuple(getattr(found, "shape", ())[1:2]) if own.is_record else ()
    _check_shape(own.setting, own.path, found, (len(targets), *sums))
    with calling(own.setting, own.path):
        value = finish(own(outputs, targets).sum(0).cpu().numpy(), count)
        _ = [float(each) for each in (value.values() if isinstance(value, Mapping) else [value])]


def _check_shape(setting: str, path: str, found: Any, wanted: tuple[int, ...]) -> None:
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != wanted:
        form = f"a tensor {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        raise SettingError(f"{setting}={path!r} returns {form}; allowed: a tensor {wanted} for {wanted[0]} rows")
