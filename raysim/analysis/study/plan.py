"""Plan the runs of a comparison file: every method with every seed, over one split."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.analysis.study import grid
from raysim.analysis.study.grid import names_in
from raysim.analysis.study.settings import ComparisonSettings, MethodEntry
from raysim.config import loader
from raysim.config.executor import ExecutorSettings
from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import PrimaryMetric
from raysim.config.tracking import TrackingSettings
from raysim.core.errors import SettingError, nearest_first
from raysim.methods.table import METHODS
from raysim.simulation.build import check_names

OWN = ("method", "server", "training", "compression")
"""Groups of settings that may differ between rows; all others are shared, so that rows can be compared."""
FIXED = {"seed": "--seeds", "method.name": "--methods"}


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
        trials: The runs that tune its rows: combination by combination, with seeds in order; empty without a grid.
    """

    settings: ComparisonSettings
    base: ExperimentSettings
    runs: tuple[Run, ...]
    trials: tuple[Run, ...] = ()

    @property
    def primary(self) -> PrimaryMetric:
        """The metric by which all runs are scored."""
        return self.base.task.primary_metric


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
    settings = loader.validated(normalised(loader.read_with_base(path)), ComparisonSettings)
    changes: dict[str, Any] = {"methods": settings.methods, "seeds": settings.seeds}
    if methods is not None:
        changes["methods"] = _chosen(settings.methods, methods)
    if seeds is not None:
        changes["seeds"] = _seeds(seeds)
    return plan(adapted(settings.model_copy(update=changes), overrides))


def adapted(settings: ComparisonSettings, overrides: Sequence[str]) -> ComparisonSettings:
    """Return a checked comparison with settings that replace those of all rows.

    Raises:
        SettingError: If something is given twice or missing, or a row sets what all rows share.
    """
    _check(settings)
    return _overridden(settings, overrides)


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
    if settings.tune and not base.data.validation_share:
        raise SettingError(
            "data.validation_share=0.0 is not allowed with tune; allowed: above 0, the rows to tune by"
        )
    grid.check(settings)
    runs = []
    for entry in settings.methods:
        first = _settings_of(entry, settings, shared, base)
        runs += [Run(entry, seed, first.model_copy(update={"seed": seed})) for seed in settings.seeds]
    trials = plan(grid.of_trials(settings, settings.tune)).runs if settings.tune else ()
    return Comparison(settings, base, tuple(runs), trials)


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
            loader.set_value(own, name, copy.deepcopy(value))
        if isinstance(own["method"], dict):
            own["method"].setdefault("name", entry.name)  # a section without a name replaces the rest of the method
        checked = loader.validated(own, ExperimentSettings)
        _check_trains_what_it_is_called(entry, checked)
        data = checked.data.model_copy(update={"split_seed": base.split_seed})
        executor = ExecutorSettings(kind="in-process")
        checked = checked.model_copy(update={"data": data, "executor": executor})
        check_names(checked)
    except SettingError as error:
        raise SettingError(f"methods: {entry.title!r}: {error}") from None
    return checked


def _check_trains_what_it_is_called(entry: MethodEntry, settings: ExperimentSettings) -> None:
    if settings.method.name != entry.name:
        raise SettingError(
            f"method.name={settings.method.name!r} is not allowed; allowed: {entry.name!r}, as the row"
        )
    if entry.title in METHODS and entry.title != entry.name:
        raise SettingError(
            f"label={entry.title!r} is the name of another method; allowed: {entry.name!r} or a label of your own"
        )


def normalised(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a file with entries for bare names of methods."""
    methods = content.get("methods")
    if not isinstance(methods, list):
        return content
    return content | {"methods": [{"name": entry} if isinstance(entry, str) else entry for entry in methods]}


def _overridden(settings: ComparisonSettings, overrides: Sequence[str]) -> ComparisonSettings:
    """Return a comparison with settings that replace those of the file and of every row."""
    given = dict(loader.parse_override(override) for override in overrides)
    _check_set("--set", given)

    def is_replaced(name: str) -> bool:
        return any(name == other or name.startswith(f"{other}.") for other in given)

    def own_set(entry: MethodEntry) -> dict[str, Any]:
        own = {name: copy.deepcopy(value) for name, value in entry.set.items() if not is_replaced(name)}
        for name, value in given.items():
            for section in own:
                if name.startswith(f"{section}.") and isinstance(own[section], dict):
                    loader.set_value(own[section], name.removeprefix(f"{section}."), value)
        return own

    methods = [entry.model_copy(update={"set": own_set(entry)}) for entry in settings.methods]
    tune = settings.tune and settings.tune.without([name for name in settings.tune.grid if is_replaced(name)])
    return settings.model_copy(update={"set": settings.set | given, "methods": methods, "tune": tune})


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
    if settings.tune:
        given |= {"tune.grid": list(settings.tune.grid), "tune.seeds": settings.tune.seeds}
        given |= {f"tune.grid.{name}": values for name, values in settings.tune.grid.items()}
    for name, values in given.items():
        counts = Counter(map(repr, values))
        twice = next((value for value, count in counts.items() if count > 1), None)
        if not values or twice:
            found = f"{name} is empty, which" if not values else f"{name}: {twice} is given twice, which"
            raise SettingError(f"{found} is not allowed; allowed: at least one, all different")
    if min(settings.seeds) < 0:
        raise SettingError(f"seeds={settings.seeds} is not allowed; allowed: whole numbers, at least 0")
    _check_set("set", settings.set)
    for entry in settings.methods:
        _check_own(f"methods: {entry.title!r}: set", names_in(entry.set))
    _check_own("tune: grid", settings.tune.grid if settings.tune else ())


def _check_own(where: str, names: Iterable[str]) -> None:
    for name in names:
        if name.partition(".")[0] not in OWN or name in FIXED:
            raise SettingError(
                f"{where}: {name!r} is not allowed, since rows must be comparable; "
                f"allowed: settings under {', '.join(OWN)}"
            )


def _check_set(where: str, given: Mapping[str, Any]) -> None:
    for name in names_in(given):
        if name in FIXED:
            raise SettingError(f"{where} {name!r} is not allowed in a comparison; it has {FIXED[name]}")
