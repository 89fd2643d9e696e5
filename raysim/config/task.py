"""Settings of the task: the metrics beside accuracy and loss."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from raysim.config.settings import Settings

METRIC = r"^(balanced_accuracy|macro_f1|per_class|top_([2-9]|[1-9][0-9]+))$"


class TaskSettings(Settings):
    """Metrics beside accuracy and loss."""

    metrics: list[Annotated[str, Field(pattern=METRIC)]] = Field(default_factory=list)
    """Metrics of the global model on test and validation rows: `balanced_accuracy`, `macro_f1`, `top_2`, `top_3` and
    so on, and `per_class` for recall, precision and F1 of each class. They come from counts summed over all rows."""

    client_metrics: bool = False
    """Whether they also score each client's submodel on its own held-out rows, as columns of `clients.parquet`."""

    @field_validator("metrics")
    @classmethod
    def _check_each_once(cls, metrics: list[str]) -> list[str]:
        twice = [name for name in metrics if metrics.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is given more than once; allowed: once")
        return metrics

    @model_validator(mode="after")
    def _check_client_metrics(self) -> Self:
        if self.client_metrics and not self.metrics:
            raise ValueError("client_metrics=True has no effect without metrics")
        return self
