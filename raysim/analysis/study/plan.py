"""Plan the runs of a comparison file: every method with every seed, over one split."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.config import loader
from raysim.config.executor import ExecutorSettings
from raysim.config.experiment import ExperimentSettings
from raysim.config.settings import Settings
from raysim.config.tracking import TrackingSettings
from raysim.core.errors import SettingError, nearest_first
from raysim.simulation.build import check_names

OWN = ("method", "server", "training", "compression")
"""Groups of settings that may differ between rows; all others are shared, so that rows can be compared."""
FIXED = {"seed": "--seeds", "method.name": "--methods"}


class MethodEntry(Settings):
    """One row: a method with its own settings; a bare name is a method without any."""

    name: str
    """Method, as in `method.name`."""
    label: str | None = None
    """Name of the row; null: the method's. A method may have several rows with different labels."""
    set: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings of this row, under `method`, `server`, `training` or `compression`: `{training.epochs: 2}`."""

    @property
    def title(self) -> str:
        """Name of the row."""
        return self.name if self.label is None else self.label

    @property
    def file_name(self) -> str:
        """The row's name as part of a path."""
        return re.sub(r"[^A-Za-z0-9._+-]", "-", self.title)


class ComparisonSettings(Settings):
    """One comparison."""

    base: dict[str, Any]
    """The settings of an experiment, or the path of its file relative to this one; its method is replaced."""
    set: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings that replace the base's in all rows, by dotted name: `{rounds: 40}`."""
    methods: list[MethodEntry]
    """The rows, at least one."""
    seeds: list[int]
    """Seeds of every row, at least one; they decide initial weights, batches, cohorts and the clock's variation."""


@dataclass(frozen=True, slots=True)
class Run:
    """One method with one seed, ready to be built."""

    entry: MethodEntry
    seed: int
    settings: ExperimentSettings

    @property
    def label(self) -> str:
        """The name of its row."""
        return self.entry.title

    @property
    def folder_name(self) -> str:
        """The name of the folder for its files."""
        return f"{self.entry.file_name}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison that is ready to run.

    Attributes:
        settings: The content of the file.
        base: The settings that all runs share; its method is ignored.
        runs: Method by method, with seeds in order.
    """

    settings: ComparisonSettings
    base: ExperimentSettings
    runs: tuple[Run, ...]


def load(
    path: Path, overrides: Sequence[str] = (), methods: str | None = None, seeds: str | None = None
) -> Comparison:
    """Read a comparison from a YAML file.

    Args:
        path: The comparison file.
        overrides: Experiment settings that replace those of all rows, as `training.learning_rate=0.05`.
        methods: Labels of the rows to run, separated by commas; None: all.
        seeds: Seeds that replace those of the file, separated by commas; None: those of the file.

    Raises:
        SettingError: If the file cannot be read or a setting is not allowed.
    """
    settings = loader.validated(_normalised(loader.read_yaml(path), path.parent), ComparisonSettings)
    changes: dict[str, Any] = {"methods": settings.methods, "seeds": settings.seeds}
    if methods is not None:
        changes["methods"] = _chosen(settings.methods, methods)
    if seeds is not None:
        changes["seeds"] = _seeds(seeds)
    _check(settings.model_copy(update=changes))
    return plan(_overridden(settings.model_copy(update=changes), overrides))


def plan(settings: ComparisonSettings) -> Comparison:
    """Return the runs of a comparison.

    Raises:
        SettingError: If a setting of a row is not allowed; the message names the row.
    """
    shared = copy.deepcopy(settings.base) | {"method": {}}
    for name, value in settings.set.items():
        if name.partition(".")[0] != "method":
            loader.set_value(shared, name, value)
    base = loader.validated(shared, ExperimentSettings)
    _check_executor(base.executor)
    check_tracking(base.tracking, "comparison")
    _check_observers(base.tracking)
    runs = []
    for entry in settings.methods:
        first = _settings_of(entry, settings, shared, base)
        runs += [Run(entry, seed, first.model_copy(update={"seed": seed})) for seed in settings.seeds]
    return Comparison(settings, base, tuple(runs))


def _check_executor(executor: ExecutorSettings) -> None:
    """Refuse settings without effect, since every run is executed in one process."""
    if executor.num_actors == "clients":
        raise SettingError(
            "executor.num_actors='clients' is not allowed in a comparison; allowed: how many runs to execute at once"
        )
    if executor.client_timeout_s is not None:
        raise SettingError(
            f"executor.client_timeout_s={executor.client_timeout_s:g} has no effect in a comparison; allowed: null"
        )
    if executor.kind == "ray" and executor.device == "cuda":
        raise SettingError(
            "executor.device='cuda' is not allowed in a comparison with executor.kind='ray'; allowed: 'in-process'"
        )


def check_tracking(tracking: TrackingSettings, where: str) -> None:
    """Refuse settings without effect in a comparison or sweep.

    Raises:
        SettingError: If each client is to have its own run in MLflow.
    """
    if tracking.client_runs:
        raise SettingError(f"tracking.client_runs=True has no effect in a {where}; allowed: false")


def _check_observers(tracking: TrackingSettings) -> None:
    if tracking.also:
        raise SettingError(
            f"tracking.also={tracking.also} has no effect in a comparison, whose runs leave no folder; allowed: []"
        )


def _settings_of(
    entry: MethodEntry, settings: ComparisonSettings, shared: dict[str, Any], base: ExperimentSettings
) -> ExperimentSettings:
    """Return the settings of a row: the shared ones, then its own; with one split, and one process per run."""
    own = copy.deepcopy(shared) | {"method": {"name": entry.name}}
    try:
        for name, value in (*settings.set.items(), *entry.set.items()):
            loader.set_value(own, name, value)
        checked = loader.validated(own, ExperimentSettings)
        data = checked.data.model_copy(update={"split_seed": base.split_seed})
        executor = ExecutorSettings(kind="in-process")
        checked = checked.model_copy(update={"data": data, "executor": executor})
        check_names(checked)
    except SettingError as error:
        raise SettingError(f"methods: {entry.title!r}: {error}") from None
    return checked


def _normalised(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of a file with entries for bare names of methods, and the settings of the base's file."""
    content = dict(content)
    if isinstance(content.get("methods"), list):
        content["methods"] = [{"name": entry} if isinstance(entry, str) else entry for entry in content["methods"]]
    if isinstance(content.get("base"), str):
        content["base"] = loader.read_yaml(folder / content["base"])
    return content


def _overridden(settings: ComparisonSettings, overrides: Sequence[str]) -> ComparisonSettings:
    """Return a comparison with settings that replace those of the file and of every row."""
    given = dict(loader.parse_override(override) for override in overrides)
    _check_set("--set", given)

    def is_replaced(name: str) -> bool:
        return any(name == other or name.startswith(f"{other}.") for other in given)

    methods = [
        entry.model_copy(update={"set": {name: value for name, value in entry.set.items() if not is_replaced(name)}})
        for entry in settings.methods
    ]
    return settings.model_copy(update={"set": settings.set | given, "methods": methods})


def _chosen(entries: Sequence[MethodEntry], labels: str) -> list[MethodEntry]:
    by_label = {entry.title: entry for entry in entries}
    for label in labels.split(","):
        if label not in by_label:
            known = ", ".join(nearest_first(label, by_label))
            raise SettingError(f"--methods={labels!r}: {label!r} is not in the file; it has: {known}")
    return [by_label[label] for label in labels.split(",")]


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise SettingError(f"--seeds={text!r} is not allowed; allowed: whole numbers, as in 0,1,2") from None


def _check(settings: ComparisonSettings) -> None:
    names = [entry.file_name for entry in settings.methods]
    given: dict[str, list[Any]] = {"methods": names, "seeds": settings.seeds}
    for name, values in given.items():
        twice = [value for value in values if values.count(value) > 1]
        if not values or twice:
            found = f"{name}=[]" if not values else f"{name}: {twice[0]!r} is given twice, which"
            raise SettingError(f"{found} is not allowed; allowed: at least one, all different")
    if min(settings.seeds) < 0:
        raise SettingError(f"seeds={settings.seeds} is not allowed; allowed: whole numbers, at least 0")
    _check_set("set", settings.set)
    for entry in settings.methods:
        for name in entry.set:
            if name.partition(".")[0] not in OWN or name in FIXED:
                raise SettingError(
                    f"methods: {entry.title!r}: set: {name!r} is not allowed, since rows must be comparable; "
                    f"allowed: settings under {', '.join(OWN)}"
                )


def _check_set(where: str, given: Mapping[str, Any]) -> None:
    for name in given:
        if name in FIXED:
            raise SettingError(f"{where} {name!r} is not allowed in a comparison; it has {FIXED[name]}")
