"""Settings of the task: its loss and its metrics."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from raysim.config.metric import (
    PER_CLASS,
    PREFIXES,
    RESERVED,
    TASK_METRICS,
    WITH_CLASS_COUNTS,
    Direction,
    PrimaryMetric,
    metric_named,
    name_of,
    names_of,
)
from raysim.config.settings import Settings
from raysim.core.errors import nearest_first
from raysim.core.plugins import is_dotted

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Names that a metric of a user may have: MLflow and the tables of a run take them."""


class TaskSettings(Settings):
    """The task that models learn: the loss that is minimised, and the metrics that score them."""

    name: Literal[
        "classification", "multilabel", "regression", "next-token", "token-classification", "segmentation"
    ] = "classification"
    """Task: `classification` (one class a row), `multilabel` (any labels a row), `regression` (numbers),
    `next-token` (the token after each token), `token-classification` (a class for each token) or `segmentation` (a
    class for each pixel)."""
    loss: str | None = None
    """A loss of your own, `package.module:name`: a function of outputs and targets that returns the loss of each
    row, or, of tasks with positions, of each position; null: the task's loss."""
    metrics: list[str] = Field(default_factory=list)
    """Further metrics of the global model on test and validation rows, besides loss and primary metric: those of the
    task, or functions of your own, `package.module:name`, that take outputs and targets and return a number for each
    row, whose mean is the metric. Classification: `accuracy`, `balanced_accuracy`, `macro_f1`, `top_2`, `top_3` and
    so on, and `per_class` for recall, precision and F1 of each class; multilabel: `f1`, `subset_accuracy`;
    regression: `rmse`, `mae`, `r2`; next-token: `perplexity`, `token_accuracy`; token-classification:
    `token_accuracy`, `macro_f1`, `balanced_accuracy`, `per_class`; segmentation: `iou`, `pixel_accuracy`."""
    primary: str | None = None
    """The metric by which models are compared, one number: of the task, or of your own; null: the first one listed
    for the task under `metrics`."""
    direction: Direction | None = None
    """Whether a primary metric of your own should go `up` or `down`; null: as it is known of the task's metrics."""
    client_metrics: bool = False
    """Whether the further metrics also score each client's submodel on its own held-out rows, as columns of
    `clients.parquet`."""

    @property
    def primary_metric(self) -> PrimaryMetric:
        """The metric by which models are compared."""
        if self.primary is None:
            return TASK_METRICS[self.name][0]
        known = metric_named(self.name, self.primary)
        if known is not None:
            return known
        return PrimaryMetric(name_of(self.primary), self.direction or "up", float("-inf"), float("inf"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loss is not None and not is_dotted(self.loss):
            raise ValueError(f"loss={self.loss!r} is not allowed; allowed: package.module:name, or null")
        self._check_primary()
        primary = self.primary_metric.name
        for name in self.metrics:
            self._check_metric(name)
            if name_of(name) == primary:
                raise ValueError(f"metrics={name!r} is the primary metric already; allowed: others")
        names = [name_of(name) for name in self.metrics]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is given more than once; allowed: once")
        if self.client_metrics and not self.metrics:
            raise ValueError("client_metrics=True has no effect without metrics")
        return self

    def _check_primary(self) -> None:
        is_own = self.primary is not None and is_dotted(self.primary)
        if self.primary == PER_CLASS and self.name in WITH_CLASS_COUNTS:
            raise ValueError(f"primary={PER_CLASS!r} is not allowed: it is many numbers; allowed: one number")
        if self.primary is not None:
            self._check_metric(self.primary, "primary")
        if is_own and self.direction is None:
            raise ValueError(f"direction is missing: primary={self.primary!r} is your own; allowed: up, down")
        if self.direction is not None and not is_own:
            raise ValueError(
                f"direction={self.direction!r} has no effect: that of {self.primary_metric.name!r} is known; "
                "allowed: null, or a primary metric of your own"
            )

    def _check_metric(self, name: str, setting: str = "metrics") -> None:
        """Raise ValueError if the task has no metric of a name, or no column can have the name of a user's own."""
        if is_dotted(name):
            own = name_of(name)
            of_tasks = {each for task in TASK_METRICS for each in names_of(task)}
            is_taken = own in {*RESERVED, *of_tasks} or own.startswith(PREFIXES)
            if is_taken or not NAME.fullmatch(own):
                raise ValueError(
                    f"{setting}={name!r}: {own!r} cannot be the name of a metric; allowed: letters, digits and `_`, "
                    "and no name of another column or of a metric of a task"
                )
        elif metric_named(self.name, name) is None and name not in names_of(self.name):
            known = [each for each in names_of(self.name) if setting == "metrics" or each != PER_CLASS]
            nearest = ", ".join(nearest_first(name, known))
            raise ValueError(
                f"{setting}={name!r} is no metric of task {self.name!r}; known: {nearest}, or package.module:name"
            )
