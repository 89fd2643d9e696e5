"""Plan the trials of a sweep file: each a configuration that is run with every seed, over one split."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raysim.analysis.study.plan import check_tracking
from raysim.analysis.sweep import metrics
from raysim.analysis.sweep.search import Domain, configurations
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import PrimaryMetric
from raysim.config.settings import Count, Seed, Settings
from raysim.core.errors import SettingError, shortened
from raysim.simulation.build import check_names
from raysim.tracking import observer

MAX_TRIALS = 10_000
FILE = "sweep.yaml"
"""The file in the folder of a sweep with its settings."""
OWN = {
    "seed": "seeds",
    "data.split_seed": "base",
    "data.validation_share": "base, the same for all trials",
    "rounds": "base, the same for all trials",
}
"""Settings that may not be searched, and where the sweep sets them."""
PRIMARY = "primary"
"""The metric that stands for the primary one on validation rows, or on test rows where there are none."""
NOT_SEARCHED = ("executor", "tracking", "checkpoint", "experiment")
"""Groups of settings that decide where a run is executed and kept, never its results."""


class HalvingSettings(Settings):
    """Asynchronous successive halving, ASHA (arXiv 1810.05934), which stops trials early."""

    grace_rounds: Count
    """Rounds that every trial runs, at least 1."""
    reduction_factor: Annotated[float, Field(gt=1, le=1e6)] = 3.0
    """At grace_rounds, and whenever a trial has this many times as many rounds, it continues only if it is among the
    best 1 / reduction_factor of the trials that got there; above 1."""


class SweepSettings(Settings):
    """One sweep."""

    base: dict[str, Any]
    """The settings of an experiment, or the path of its file relative to this one."""
    set: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings that replace the base's in all trials, by dotted name: `{rounds: 40}`."""
    search: dict[str, dict[str, Any]]
    """The values of each searched setting, by its dotted name: `{training.epochs: {randint: [1, 3]}}`; all kinds are
    in `raysim.analysis.sweep.search.Domain`."""
    samples: Count = 1
    """The number of draws for each point of the grids, at least 1; a sweep has at most 10,000 trials."""
    search_seed: Seed = 0
    """The seed of the draws."""
    seeds: Annotated[list[int], Field(min_length=1, max_length=1000)] = [0]  # noqa: RUF012 - pydantic copies it
    """The seeds of every trial, which run side by side, round by round; its metric is their mean."""
    metric: str = PRIMARY
    """The metric by which trials are compared: one that all of them will have. `primary`, or the name of the task's
    primary metric, as `accuracy`: `accuracy/validation` if `data.validation_share` gives validation rows, else
    `accuracy/global`, which is of the test rows."""
    mode: Literal["max", "min"] | None = None
    """Whether a high or a low metric is better; null: as the direction of the primary metric says of its values, else
    `max`."""
    asha: HalvingSettings | None = None
    """When trials are stopped early; null: never."""
    concurrent: Count | None = None
    """The most trials at a time; null: as many as the cluster has room for."""
    address: str | None = None
    """The address of a running Ray cluster; null: RAY_ADDRESS if set, else a new local Ray."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.search:
            raise ValueError("search={} is not allowed; allowed: at least one setting")
        twice = [seed for seed in self.seeds if self.seeds.count(seed) > 1]
        if twice or min(self.seeds) < 0:
            raise ValueError(f"seeds={self.seeds} is not allowed; allowed: whole numbers, at least 0, all different")
        return self


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration.

    Attributes:
        index: Its number, from 0.
        values: The values of the searched settings, by dotted name.
        runs: Its experiment with each seed.
    """

    index: int
    values: Mapping[str, Any]
    runs: tuple[ExperimentSettings, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.index:03d}"

    def folder_of(self, run: ExperimentSettings, sweep: Path) -> Path:
        """Return the folder of one of its runs in the folder of the sweep."""
        return sweep / "trials" / self.name / f"seed-{run.seed}"

    @property
    def title(self) -> str:
        """Its number and values."""
        short = short_names(list(self.values))
        values = ", ".join(f"{short[name]} {value}" for name, value in self.values.items())
        return f"trial {self.index}: {values}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last part of dotted names, and a name itself where another has the same last part.

    >>> short_names(["training.epochs", "method.name", "budget.rule", "selection.rule"])
    {'training.epochs': 'epochs', 'method.name': 'method', 'budget.rule': 'budget.rule', \
'selection.rule': 'selection.rule'}
    """
    last = [name.removesuffix(".name").rpartition(".")[2] for name in names]
    return {name: name if last.count(short) > 1 else short for name, short in zip(names, last, strict=True)}


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep that is ready to run.

    Attributes:
        settings: The content of the file.
        base: The settings that all trials share, except for the searched ones.
        trials: The trials, in the order in which they are started.
    """

    settings: SweepSettings
    base: ExperimentSettings
    trials: tuple[Trial, ...]

    @property
    def title(self) -> str:
        """Searched settings, data set, model, rounds and seeds, in one line."""
        base, seeds = self.base, self.settings.seeds
        return (
            f"{len(self.trials)} trials of {', '.join(self.settings.search)} on {base.data.name} with "
            f"{base.model.name}, {base.rounds} rounds, seed{'s'[: len(seeds) - 1]} {', '.join(map(str, seeds))}"
        )

    @property
    def primary(self) -> PrimaryMetric:
        """The metric by which models are compared."""
        return self.base.task.primary_metric

    @property
    def mode(self) -> str:
        """`max` or `min`: whether a high or a low metric is better."""
        return self.settings.mode or "max"

    @property
    def num_cpus(self) -> int:
        """The CPUs that a trial takes: one, or one for each actor of each of its runs."""
        actors = self.base.executor.num_actors
        return len(self.settings.seeds) * actors if isinstance(actors, int) else 1

    @property
    def num_drawn(self) -> int:
        """The number of drawn configurations, including repeated ones."""
        grids = [len(each["grid"]) for each in self.settings.search.values() if each.get("grid")]
        total = self.settings.samples
        for size in grids:
            total *= size
        return total


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep from a YAML file.

    Args:
        path: The file.
        overrides: Experiment settings that replace those of all trials, as `rounds=10`.

    Raises:
        SettingError: If the file cannot be read or a setting is not allowed.
    """
    settings = loader.validated(loader.read_with_base(path), SweepSettings)
    given = dict(loader.parse_override(override) for override in overrides)
    return plan(settings.model_copy(update={"set": settings.set | given}))


def plan(settings: SweepSettings) -> Sweep:
    """Return the trials of a sweep.

    Raises:
        SettingError: If a setting is not allowed; the message names the trial.
    """
    search = {name: _domain(name, each, settings) for name, each in settings.search.items()}
    if settings.samples > 1 and all(domain.grid is not None for domain in search.values()):
        raise SettingError(
            f"samples={settings.samples} has no effect where every setting has a grid; allowed: 1, or settings that "
            "are drawn"
        )
    if "seed" in settings.set:
        raise SettingError("set: 'seed' is not allowed in a sweep: it is set by seeds; allowed: data.split_seed")
    drawn = settings.samples * math.prod(len(domain.grid) for domain in search.values() if domain.grid is not None)
    if drawn > MAX_TRIALS:
        raise SettingError(
            f"samples={settings.samples} and the grids of search make {shortened(drawn)} trials; allowed: at most "
            f"{MAX_TRIALS:,}"
        )
    shared = copy.deepcopy(settings.base)
    for name, value in settings.set.items():
        loader.set_value(shared, name, copy.deepcopy(value))
    base = loader.validated(shared, ExperimentSettings)
    _check_base(base, settings)
    primary = base.task.primary_metric
    metric = metrics.primary_of(base) if settings.metric in (PRIMARY, primary.name) else settings.metric
    mode = settings.mode or ("max" if metrics.direction_of(metric, primary) == "up" else "min")
    settings = settings.model_copy(update={"metric": metric, "mode": mode})
    trials = []
    for index, values in enumerate(configurations(search, settings.samples, settings.search_seed)):
        trials.append(_trial(index, values, shared, base, settings.seeds))
    return Sweep(settings, base, tuple(trials))


def _domain(name: str, given: dict[str, Any], settings: SweepSettings) -> Domain:
    if name.partition(".")[0] in NOT_SEARCHED:
        raise SettingError(f"search: {name!r} is not allowed: it decides where a run is executed, not its results")
    try:
        domain = loader.validated(given, Domain)
    except SettingError as error:
        if name in OWN:
            raise SettingError(f"search: {name!r} is not allowed: it is set by {OWN[name]}") from None
        raise SettingError(f"search: {name}: {error}") from None
    for value in (*(domain.grid or ()), *(domain.choice or ()), None):
        for inner in loader.names_set_by(name, value):
            if inner in OWN:
                raise SettingError(f"search: {inner!r} is not allowed: it is set by {OWN[inner]}")
    _check_set_once(name, settings)
    return domain


def _check_set_once(name: str, settings: SweepSettings) -> None:
    """Refuse a searched setting that another entry of the file sets, or that is in a section that one does."""
    for other in settings.search:
        if other.startswith(f"{name}."):
            raise SettingError(f"search: {name!r} is not allowed: search has {other!r} already; allowed: one of them")
    for key, value in settings.set.items():
        if name in loader.names_set_by(key, value) or key.startswith(f"{name}."):
            raise SettingError(f"search: {name!r} is not allowed: set has it already")


def _check_base(base: ExperimentSettings, settings: SweepSettings) -> None:
    executor = base.executor
    check_tracking(base.tracking, "sweep")
    observer.check_names(base.tracking)
    if executor.kind == "ray" and not isinstance(executor.num_actors, int):
        raise SettingError(
            f"executor.num_actors={executor.num_actors!r} is not allowed in a sweep; allowed: a number of actors for "
            "each run, or executor.kind='in-process'"
        )
    if executor.kind == "ray" and executor.device == "cuda":
        raise SettingError(
            "executor.device='cuda' is not allowed in a sweep with executor.kind='ray'; allowed: 'in-process'"
        )
    for name in ("address", "dashboard_host"):
        if getattr(executor, name) is not None:
            raise SettingError(
                f"executor.{name}={getattr(executor, name)!r} is not allowed in a sweep; allowed: null, and the "
                "address of the sweep itself"
            )
    if settings.asha is not None and settings.asha.grace_rounds > base.rounds:
        raise SettingError(
            f"asha.grace_rounds={settings.asha.grace_rounds} is more than rounds={base.rounds}; allowed: 1 to "
            f"{base.rounds}"
        )


def _trial(
    index: int, values: dict[str, Any], shared: dict[str, Any], base: ExperimentSettings, seeds: Sequence[int]
) -> Trial:
    """Return a trial: its values on top of the shared settings, with one split and a run for each seed."""
    own = copy.deepcopy(shared)
    try:
        for name, value in values.items():
            loader.set_value(own, name, copy.deepcopy(value))
        checked = loader.validated(own, ExperimentSettings)
        data = checked.data.model_copy(update={"split_seed": base.split_seed})
        checked = checked.model_copy(update={"data": data})
        check_names(checked)
        if checked.task.primary_metric != base.task.primary_metric:
            raise SettingError("task has another primary metric than other trials; allowed: the same in all")
    except SettingError as error:
        named = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise SettingError(f"search: trial {index} ({named}): {error}") from None
    return Trial(index, values, tuple(checked.model_copy(update={"seed": seed}) for seed in seeds))
