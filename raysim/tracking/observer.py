"""Follow a run as it happens: the protocol of observers, and what they are given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import inf
from typing import Any, Literal, Protocol, cast, runtime_checkable

from raysim.config.experiment import ExperimentSettings
from raysim.config.tracking import TrackingSettings
from raysim.core import plugins
from raysim.core.errors import SettingError, reason_of, unknown_name
from raysim.core.json_text import json_in
from raysim.core.log import warning
from raysim.core.storage.path import StoragePath
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport

HASTY_S = 2.0
"""Seconds that observers have in all if the process has to end at once; `ray job stop` gives three seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class RunInfo:
    """A run that begins or is resumed.

    Attributes:
        settings: The experiment, complete.
        scenario: Its population, model, method and costs.
        folder: Its files, from the beginning `config.yaml`, `run.json`, `plan.json`, `budgets.json` and
            `devices.parquet`.
    """

    settings: ExperimentSettings
    scenario: Scenario
    folder: StoragePath

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The content of `run.json`: versions, digests, sizes, and the run's id in MLflow once it has one."""
        content: dict[str, Any] = json_in((self.folder / "run.json").read_text())
        return content


@dataclass(frozen=True, slots=True, eq=False)
class RunOutcome:
    """How a run ended.

    Attributes:
        state: `finished`; `failed`; or `killed`, that is stopped by its user or by a signal before it finished.
        summary: Costs and results of the run, as in `summary.json`; None unless it finished.
        error: The exception that ended it; None if it finished.
        patience_s: Seconds that the run waits for this observer before it continues without it.
    """

    state: Literal["finished", "failed", "killed"]
    summary: Mapping[str, Any] | None = None
    error: BaseException | None = None
    patience_s: float = inf

    @property
    def is_hasty(self) -> bool:
        """Whether the process has to end at once: after a second Ctrl-C, or a signal."""
        return self.patience_s <= HASTY_S


@runtime_checkable
class RunObserver(Protocol):
    """Follows a run, in the process that runs the command; its methods are called one after another.

    A class that inherits from it needs only the methods it uses.
    """

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        """Prepare to follow a run; it begins with the round after `resumed_from`.

        An observer whose `on_begin` raises is not called again: what it has opened by then, it has to close itself.

        Args:
            run: The run.
            resumed_from: The last round of the checkpoint with which the run is resumed; 0: it begins with round 1.
        """

    def on_round(self, report: RoundReport) -> None:
        """Follow a round, whose records are on disk.

        On Ray, if the driver actor is lost, the rounds after the newest checkpoint are repeated, with the same
        results, and reported again. Rounds before it may never be reported, if their reports are lost with the
        machine; their records are not, so an observer that needs every round reads them there.
        """

    def on_end(self, outcome: RunOutcome) -> None:
        """Finish; called once, or again with `killed` if the first call was interrupted."""


class GuardedObserver:
    """Calls an observer, and reports its first error with one warning instead of letting it end the run."""

    def __init__(self, name: str, observer: RunObserver) -> None:
        """Guard an observer.

        Args:
            name: The observer's name in the warning.
            observer: It is not called again if its `on_begin` fails.
        """
        self._name, self._observer = name, observer
        self._has_failed = self._is_out = False

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        """Call the observer when the run begins."""
        self._call(
            lambda: self._observer.on_begin(run, resumed_from),
            "before the first round",
            "the run continues without it",
        )
        self._is_out = self._has_failed

    def on_round(self, report: RoundReport) -> None:
        """Call the observer after a round."""
        self._call(lambda: self._observer.on_round(report), f"in round {report.round}")

    def on_end(self, outcome: RunOutcome) -> None:
        """Call the observer when the run ends."""
        self._call(lambda: self._observer.on_end(outcome), "at the end of the run")

    def _call(self, call: Callable[[], None], when: str, consequence: str = "the run continues") -> None:
        if self._is_out:
            return
        try:
            call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not self._has_failed:
                warning(f"{self._name} failed {when}; {consequence}: {type(error).__name__}: {reason_of(error)}")
            self._has_failed = True


def check_names(tracking: TrackingSettings) -> None:
    """Look up the names in `tracking.also`, without making an observer.

    Raises:
        SettingError: If a name is unknown, or what it names cannot be imported.
    """
    for name in tracking.also:
        _factory(name)


def chosen(tracking: TrackingSettings) -> list[RunObserver]:
    """Return the observers of `tracking.also`; none of them can end a run.

    Raises:
        SettingError: If one is unknown, or cannot be made.
    """
    return [GuardedObserver(f"tracking.also={name!r}", _made(name)) for name in tracking.also]


def _made(name: str) -> RunObserver:
    with plugins.calling("tracking.also", name):
        observer = _factory(name)()
    if isinstance(observer, type) or not isinstance(observer, RunObserver):
        raise SettingError(f"tracking.also={name!r} gives {type(observer).__name__}; allowed: {ALLOWED}")
    return observer


def _factory(name: str) -> Callable[[], object]:
    """Return the class or function that a name means."""
    if plugins.is_dotted(name):
        factory: Callable[[], object] = plugins.load("tracking.also", name)
        if not callable(factory):
            raise SettingError(f"tracking.also={name!r} is {type(factory).__name__}; allowed: {ALLOWED}")
        return factory
    if name not in OBSERVERS:
        raise unknown_name("tracking.also", name, OBSERVERS)
    module, _, attribute = OBSERVERS[name].partition(":")
    try:
        return cast(Callable[[], object], getattr(import_module(module), attribute))
    except ImportError as error:
        raise SettingError(
            f"tracking.also={name!r} needs a library that is not installed ({error}); `pip install 'raysim[{name}]'`"
        ) from None


ALLOWED = "a class or a function without arguments that gives a raysim.RunObserver"
OBSERVERS = {"tensorboard": "raysim.tracking.tensorboard:TensorBoardObserver"}
"""Observers by name, each with an optional extra of the same name that brings its library."""
