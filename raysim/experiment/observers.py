"""Call the observers of a run: MLflow, the report, those of `tracking.also`, and the progress display."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import Any, Literal

from raysim.core.errors import ReportLostError, StoppedError, TrackingLostError
from raysim.experiment.experiment import Experiment
from raysim.report.observer import ReportObserver
from raysim.simulation.state import RoundReport
from raysim.terminal.progress import ProgressObserver
from raysim.tracking import observer
from raysim.tracking.observer import HASTY_S, GuardedObserver, RunInfo, RunObserver, RunOutcome

PATIENCE_S = 30.0
"""Seconds that observers have in all if a run ends early."""


class Observers:
    """Calls the observers of one run: like contexts, they begin in their order and end in the reverse order.

    A guarded observer raises nothing. MLflow and the report are not guarded: the user is promised to learn of their
    errors, by exit code and message.
    """

    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self._observers = observers
        self._open: list[RunObserver] = []

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        """Begin; the first error of an observer is raised, and the observers after it do not begin."""
        for each in self._observers:
            self._open.append(each)
            each.on_begin(run, resumed_from)

    def on_round(self, report: RoundReport) -> None:
        """Report a round to all."""
        for each in self._open:
            each.on_round(report)

    def on_finish(self, summary: Mapping[str, Any]) -> list[ReportLostError | TrackingLostError]:
        """End after a run that has written its results; return the errors of report and MLflow.

        After any other error, `on_early_end` ends the observers that have not ended.
        """
        lost: list[ReportLostError | TrackingLostError] = []
        while self._open:
            try:
                self._open[-1].on_end(RunOutcome("finished", summary))
            except (ReportLostError, TrackingLostError) as error:
                lost.append(error)
            self._open.pop()
        return lost

    def on_early_end(self, outcome: RunOutcome, first: Callable[[], object] | None = None) -> None:
        """End after a run that failed or was stopped, within the patience of its outcome.

        Args:
            outcome: How the run ended; its patience is for all observers together.
            first: Called before they end.

        Raises:
            KeyboardInterrupt: If this was interrupted; all were called nevertheless, the later ones in haste.
        """
        until, interrupt = time.monotonic() + outcome.patience_s, None
        steps: list[Callable[[RunOutcome], object]] = [each.on_end for each in reversed(self._open)]
        steps = steps if first is None else [lambda _: first(), *steps]
        self._open.clear()
        while steps:
            step, left_s = steps.pop(0), max(0.0, until - time.monotonic())
            try:
                _call_within(left_s / 2 if steps else left_s, step, outcome)
            except KeyboardInterrupt as error:
                interrupt, until = error, min(until, time.monotonic() + HASTY_S)
        if interrupt is not None:
            raise interrupt


def _call_within(patience_s: float, step: Callable[[RunOutcome], object], outcome: RunOutcome) -> None:
    """Call a step and wait for it for some seconds; its errors are dropped, since the run has failed already."""

    def call() -> None:
        with suppress(Exception):
            step(replace(outcome, patience_s=patience_s))

    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(patience_s)


def observers_of(experiment: Experiment) -> Observers:
    """Return the observers of an experiment; MLflow begins first and ends last, with all files written."""
    observers: list[RunObserver] = []
    if experiment.tracker is not None:
        from raysim.tracking.mlflow_observer import MlflowObserver

        watches_machine = experiment.settings.tracking.system_metrics and experiment.summary is None
        observers.append(MlflowObserver(experiment.tracker, experiment.logged, watches_machine))
    observers += [ReportObserver(), *observer.chosen(experiment.settings.tracking)]
    if experiment.summary is None:
        observers.append(GuardedObserver("the progress display", ProgressObserver()))
    return Observers(observers)


def outcome_of(error: BaseException) -> RunOutcome:
    """Return the outcome of a run that an error ended."""
    if isinstance(error, KeyboardInterrupt):
        return RunOutcome("killed", error=error, patience_s=HASTY_S)
    state: Literal["killed", "failed"] = "killed" if isinstance(error, StoppedError) else "failed"
    return RunOutcome(state, error=error, patience_s=PATIENCE_S)
