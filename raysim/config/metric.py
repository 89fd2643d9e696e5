"""The metrics of each task, and the one by which its models are compared: its name, direction and range."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isnan
from typing import Any, Literal

from raysim.core.formatting import percent

Direction = Literal["up", "down"]
FIELD = "primary"
"""Stands for the metric's name in the names of fields, such as `best_primary`."""


@dataclass(frozen=True, slots=True)
class PrimaryMetric:
    """The metric by which models are compared.

    Attributes:
        name: Its name in records and on pages.
        direction: Whether it should go `up` or `down`.
        least: Its least value.
        most: Its greatest value.
    """

    name: str = "accuracy"
    direction: Direction = "up"
    least: float = 0.0
    most: float = 1.0

    @property
    def is_share(self) -> bool:
        """Whether it lies in [0, 1], so that it may be written in per cent."""
        return (self.least, self.most) == (0, 1)

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        return self.name.replace("_", " ")

    @property
    def scale(self) -> int:
        """Factor of values in figures: 100 for shares, which are shown in per cent, else 1."""
        return 100 if self.is_share else 1

    @property
    def axis(self) -> str:
        """Its name and unit beside an axis."""
        return f"{self.title} (%)" if self.is_share else self.title

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.direction == "up" else -1

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value is better than another; NaN is worse than any number.

        >>> PrimaryMetric("rmse", "down").is_better(1.0, than=2.0)
        True
        """
        return not isnan(value) and (isnan(than) or self.sign * value > self.sign * than)

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is as good as a target, or better.

        >>> PrimaryMetric().reaches(0.5, 0.5), PrimaryMetric("rmse", "down").reaches(2.1, 2.0)
        (True, False)
        """
        return self.sign * value >= self.sign * target

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values, of which there is at least one; NaN only if all are.

        >>> PrimaryMetric("rmse", "down").best([3.0, float("nan"), 1.0])
        1.0
        """
        found = float("nan")
        for value in values:
            found = value if self.is_better(value, found) else found
        return found

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of some values, of which there is at least one; NaN only if all are.

        >>> PrimaryMetric("rmse", "down").worst([3.0, 1.0])
        3.0
        """
        return -PrimaryMetric(direction=self.direction).best(-value for value in values)

    def allows(self, target: float) -> bool:
        """Whether a model can be short of a target and reach it."""
        is_short = target > self.least if self.direction == "up" else target < self.most
        return is_short and self.least <= target <= self.most

    @property
    def allowed(self) -> str:
        """The targets that models can be short of and reach.

        >>> PrimaryMetric().allowed, PrimaryMetric("rmse", "down", 0, inf).allowed
        ('in (0, 1]', 'in [0, inf)')
        """
        begin, end = ("(", "]") if self.direction == "up" else ("[", ")")
        begin, end = "(" if self.least == -inf else begin, ")" if self.most == inf else end
        return f"in {begin}{self.least:g}, {self.most:g}{end}"

    def recorded(self, field: str) -> str:
        """Return the name in records of a field.

        >>> PrimaryMetric("rmse").recorded("best_primary")
        'best_rmse'
        """
        return field.replace(FIELD, self.name)

    @property
    def stop_setting(self) -> str:
        """The setting of a value that ends a run."""
        return "stop.accuracy" if self.name == "accuracy" else f"stop.{FIELD}"

    @property
    def entries(self) -> dict[str, str]:
        """Its entries in `run.json` and `summary.json`."""
        return {"primary_metric": self.name, "direction": self.direction}

    def as_recorded(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields by their names in records."""
        return {self.recorded(field): value for field, value in fields.items()}

    def text(self, value: float) -> str:
        """Write a value: four decimals of a share, five digits of another number.

        >>> PrimaryMetric().text(0.5), PrimaryMetric("perplexity", "down", 1, inf).text(123.456)
        ('0.5000', '123.46')
        """
        return f"{value:.4f}" if self.is_share else f"{value:.5g}"

    def in_percent(self, value: float, digits: int = 2) -> str:
        """Write a share in per cent, another number as it is; NaN is a dash.

        >>> PrimaryMetric().in_percent(0.5), PrimaryMetric("rmse", "down", 0, inf).in_percent(0.5)
        ('50.00 %', '0.5')
        """
        if isnan(value):
            return "-"
        return percent(100 * value, digits) if self.is_share else self.text(value)

    def target_text(self, target: float) -> str:
        """Write a target: a share in per cent, with no more digits than it has.

        >>> PrimaryMetric().target_text(0.125), PrimaryMetric("rmse", "down", 0, inf).target_text(0.125)
        ('12.5 %', '0.125')
        """
        return f"{100 * target:g} %" if self.is_share else f"{target:g}"


ACCURACY = PrimaryMetric()

TASK_METRICS: dict[str, tuple[PrimaryMetric, ...]] = {
    "classification": (ACCURACY, PrimaryMetric("balanced_accuracy"), PrimaryMetric("macro_f1")),
    "multilabel": (PrimaryMetric("f1"), PrimaryMetric("subset_accuracy")),
    "regression": (
        PrimaryMetric("rmse", "down", 0, inf),
        PrimaryMetric("mae", "down", 0, inf),
        PrimaryMetric("r2", "up", -inf, 1),
    ),
    "next-token": (PrimaryMetric("perplexity", "down", 1, inf), PrimaryMetric("token_accuracy")),
    "token-classification": (
        PrimaryMetric("token_accuracy"),
        PrimaryMetric("macro_f1"),
        PrimaryMetric("balanced_accuracy"),
    ),
    "segmentation": (PrimaryMetric("iou"), PrimaryMetric("pixel_accuracy")),
}
"""The scalar metrics of each task; the first is the primary one where the settings name no other."""
PER_CLASS = "per_class"
"""The metric that stands for recall, precision and F1 of each class."""
TOP = "top_"
"""Before k in the name of a top-k accuracy."""
TOP_K = re.compile(rf"{TOP}([2-9]|[1-9][0-9]+)")
WITH_CLASS_COUNTS = ("classification", "token-classification")
"""Tasks that have `per_class`."""
RESERVED = (
    "bytes", "calls", "channels", "client", "client_s", "clients", "clock", "compute", "compute_s", "coverage",
    "diagnostics", "down_bytes", "download_s", "driver_bytes", "energy", "energy_j", "epochs", "examples",
    "fairness", "fate", "faults", "fedavg", "flops_per_s", "keep_ratio", "lasts_s", "limited_by", "loss",
    "method", "metrics", "primary", "pruning_ratio", "round", "round_s", "rounds", "run", "seed", "simulated_s",
    "start_s", "started_round", "state", "steps", "system", "targets", "test", "theoretical_train_flops",
    "tier", "time", "timestamp_ms", "total_s", "traffic", "train_flops", "train_loss", "up_bytes", "upload_s",
    "validation", "wall_s", "widths",
)  # fmt: skip
"""Names of other columns, metrics and entries, which no metric of a user may have."""
PREFIXES = ("best_", "fedavg_", "heldout_", "planned_", "validation_", "width_")
"""Before names of other columns and entries."""


def names_of(task: str) -> list[str]:
    """Return the names of a task's metrics.

    >>> names_of("regression")
    ['rmse', 'mae', 'r2']
    """
    further = [PER_CLASS] if task in WITH_CLASS_COUNTS else []
    return (
        [metric.name for metric in TASK_METRICS[task]] + further + ([f"{TOP}2"] if task == "classification" else [])
    )


def metric_named(task: str, name: str) -> PrimaryMetric | None:
    """Return the scalar metric of a task by its name; None: it has no such one."""
    if task == "classification" and TOP_K.fullmatch(name):
        return PrimaryMetric(name)
    return next((metric for metric in TASK_METRICS[task] if metric.name == name), None)


def metric_in(content: Mapping[str, Any]) -> PrimaryMetric:
    """Return the primary metric that `run.json` or `summary.json` names; of earlier versions it is the accuracy.

    >>> metric_in({"primary_metric": "rmse", "direction": "down"}).allowed, metric_in({}).name
    ('in [0, inf)', 'accuracy')
    """
    name, direction = content.get("primary_metric", ACCURACY.name), content.get("direction", ACCURACY.direction)
    known = metric_of_any(name)
    return known if known.direction == direction else PrimaryMetric(name, direction, -inf, inf)


def metric_of_any(name: str) -> PrimaryMetric:
    """Return a metric of any task by its name in records; one of a user is a plain number.

    >>> metric_of_any("macro_f1").is_share, metric_of_any("brier").is_share
    (True, False)
    """
    metrics = (metric_named(task, name) for task in TASK_METRICS)
    return next((metric for metric in metrics if metric is not None), PrimaryMetric(name, "up", -inf, inf))


def name_of(given: str) -> str:
    """Return the name of a metric in records: a dotted path's last part.

    >>> name_of("my_pkg.metrics:brier"), name_of("rmse")
    ('brier', 'rmse')
    """
    return given.rpartition(":")[2]
