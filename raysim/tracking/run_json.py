"""The types of the entries in `run.json` and `summary.json`, checked before anything uses them."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from raysim.config.metric import ACCURACY, Direction, PrimaryMetric
from raysim.core.errors import reason_of


class _Entries(BaseModel):
    """Entries that a file may have; others are left to whoever wrote them."""

    model_config = ConfigDict(strict=True, extra="ignore")


class RunEntries(_Entries):
    """The entries of `run.json`."""

    run_id: str = ""
    tracking_uri: str = ""
    experiment_id: str = ""
    key: str = ""
    output_dir: str = ""
    data_sha256: str = ""
    partition_sha256: str = ""
    config_sha256: str = ""
    full_model: dict[str, float] = {}
    leftover_rows: int | None = None
    environment: dict[str, str] = {}
    primary_metric: str = ACCURACY.name
    direction: Direction = "up"
    finished: bool = False
    state: str | None = None
    failure: str | None = None
    unlogged: list[str] = []


class Target(_Entries):
    """A target of the primary metric, and what had been spent when it was reached; None if it was not."""

    primary: float
    round: int | None
    simulated_s: float | None
    bytes: float | None
    train_flops: float | None
    energy_j: float | None


class SummaryEntries(_Entries):
    """The entries of `summary.json`, of a run, of a comparison's run or of a trial; `primary` stands for a name."""

    run_id: str = ""
    experiment: str = ""
    method: str = ""
    label: str | None = None
    state: str | None = None
    failure: str | None = None
    seed: int = 0
    rounds: float = 0
    primary_metric: str = ACCURACY.name
    direction: Direction = "up"
    primary: float | None = None
    best_primary: float | None = None
    pruning_ratio_mean: float = 0
    down_bytes: float = 0
    up_bytes: float = 0
    train_flops: float = 0
    simulated_s: float = 0
    energy_j: float = 0
    empty_rounds: int = 0
    preparation_s: float = 0
    preparation_bytes: float = 0
    preparation_flops: float = 0
    preparation_j: float = 0
    bytes_percent_of_fedavg: float | None = None
    flops_percent_of_fedavg: float | None = None
    fates: dict[str, int] = {}
    targets: list[Target] = []
    full_model: dict[str, float] = {}
    costs: dict[str, float] = {}
    params_sha256: str = ""
    output_dir: str = ""
    tracking_uri: str = ""
    experiment_id: str = ""
    wall_s: float = 0
    split: dict[str, str] = {}
    files_sha256: dict[str, str] = {}


ENTRIES: Mapping[str, type[_Entries]] = {"run.json": RunEntries, "summary.json": SummaryEntries}


NAMED = ("primary", "best_primary")
"""Entries that are named after the primary metric."""


def _by_field(content: Mapping[str, Any], metric: PrimaryMetric) -> dict[str, Any]:
    """Return entries with those that are named after the metric by the names of their fields."""
    fields = {metric.recorded(name): name for name in NAMED}
    found = {fields.get(name, name): value for name, value in content.items()}
    targets = found.get("targets")
    if isinstance(targets, list):
        found["targets"] = [_by_field(each, metric) if isinstance(each, dict) else each for each in targets]
    return found


def check_entries(file: str, content: Mapping[str, Any]) -> None:
    """Raise ValueError if an entry of a file has another type than the one it is written with.

    >>> check_entries("run.json", {"environment": []})
    Traceback (most recent call last):
    ValueError: run.json: 'environment' is []: Input should be a valid dictionary
    """
    name = content.get("primary_metric", ACCURACY.name)
    metric = PrimaryMetric(name if isinstance(name, str) else ACCURACY.name)
    try:
        ENTRIES[file].model_validate(_by_field(content, metric))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(metric.recorded(part) if part in NAMED else str(part) for part in first["loc"])
        value = reason_of(ValueError(repr(first["input"])))[:100]
        raise ValueError(f"{file}: {name!r} is {value}: {first['msg']}") from None
