"""Execute one trial: its runs, one for each seed, side by side, round by round."""

import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from raysim.analysis.sweep.metrics import primary_of, test_metrics
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import RunFailedError, StoppedError
from raysim.core.storage.path import StoragePath
from raysim.experiment.experiment import Experiment
from raysim.experiment.finish import summarise
from raysim.experiment.observers import Observers, outcome_of
from raysim.experiment.start import data_digests, environment, write_scenario
from raysim.simulation import checkpoint, metrics, records
from raysim.simulation.build import build_scenario, resolved
from raysim.simulation.scenario import Runner
from raysim.simulation.state import Storage, width_name
from raysim.tracking import observer
from raysim.tracking.observer import RunInfo


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a trial after a scored round.

    Attributes:
        round: The round.
        value: The mean over its runs of the metric by which trials are compared.
        primary: The mean of their primary metric on the validation rows, or on the test rows where there are none.
    """

    round: int
    value: float
    primary: float


def results(
    runs: Sequence[tuple[ExperimentSettings, StoragePath, Runner]], metric: str, since: int = 0
) -> Iterator[Result]:
    """Execute what is left of a trial, and yield its result after each scored round.

    A run counts with its last value of the metric, from whichever round; nothing is yielded before all runs have one.
    The final model is on disk before the last result is yielded, since the caller may then end this process.

    Args:
        runs: The settings, folder and runner of each run.
        metric: The metric by which trials are compared.
        since: The last round whose result is known already.

    Raises:
        SettingError: If a setting does not fit the data or the model.
        RunFailedError: If a run fails, or one has ended without such a metric.
    """
    with ExitStack() as stack:
        started = [stack.enter_context(_TrialRun(*run)) for run in runs]
        for round in itertools.count(1):
            for run in started:
                run.go_to(round)
            if all(run.round < round for run in started):
                _check_known(started, metric)
                return
            if all(run.round == run.rounds for run in started):
                for run in started:
                    run.go_to(round + 1)
            is_scored = any(run.scored_round == round for run in started)
            if round > since and is_scored and all({metric, run.scored} <= run.values.keys() for run in started):
                values = [run.values[metric] for run in started]
                scores = [run.values[run.scored] for run in started]
                yield Result(round, statistics.fmean(values), statistics.fmean(scores))


def _check_known(runs: Sequence["_TrialRun"], metric: str) -> None:
    for run in runs:
        if metric not in run.values:
            raise RunFailedError(run.round, -1, f"none of the rounds up to here has had metric={metric!r}")


class _TrialRun:
    """One run of a trial, a round at a time; rounds that were executed before are read from their records.

    Its observers are those of `tracking.also`; the sweep's own process logs it to MLflow.
    """

    def __init__(self, settings: ExperimentSettings, folder: StoragePath, runner: Runner) -> None:
        self._settings, self._folder, self._runner = settings, folder, runner
        self._observers = Observers(observer.chosen(settings.tracking))
        self._known, self._is_over = 0, False
        self.scored = primary_of(settings)
        """A metric that scored rounds have, and no others."""
        self.values: dict[str, float] = {}
        """The last value of each metric: rounds in which no client of a tier took part have none of that tier."""
        self.rounds, self.round, self.scored_round = settings.rounds, 0, 0

    def __enter__(self) -> "_TrialRun":
        with ExitStack() as stack:
            stack.enter_context(self._runner)
            self._begin()
            self._leave = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._is_over:
            if error is None or isinstance(error, (GeneratorExit, SystemExit)):  # how Tune ends a trial
                error = StoppedError("the trial was stopped early")
            self._observers.on_early_end(outcome_of(error))
        self._leave.close()

    def _begin(self) -> None:
        scenario = build_scenario(self._settings)
        settings, folder = resolved(self._settings, scenario), self._folder
        folder.make()
        if not (folder / "config.yaml").is_file():
            write_scenario(scenario, folder)
            unlogged = metrics.left_out_of(scenario)
            if settings.data.validation_share:
                # of the best trial alone, and in its summary
                unlogged |= {*test_metrics(settings)}
                unlogged |= {*(f"width_{scenario.primary.name}/{width_name(width)}" for width in scenario.widths)}
            metadata = {
                **{f"{what}_sha256": digest for what, digest in data_digests(scenario).items()},
                "unlogged": sorted(unlogged),
                "environment": environment(),
                "num_classes": scenario.workload.data.num_classes,
                **scenario.primary.entries,
                "full_model": asdict(scenario.costs.dense),
            }
            (folder / "run.json").write_text(json.dumps(metadata, indent=2))
            (folder / "config.yaml").write_text(loader.to_yaml(settings))
        start = checkpoint.resume_point(folder)
        storage = Storage(folder, settings.checkpoint.every, settings.checkpoint.keep)
        self._experiment, self._started = Experiment(settings, folder, scenario, None, start), time.monotonic()
        self._observers.on_begin(RunInfo(settings, scenario, folder), start.round)
        self._reports = self._runner.run(scenario, storage, start)
        self._known = start.round

    def go_to(self, round: int) -> None:
        """Execute a round, or read its record; after the last one, write the final model."""
        if self._is_over:
            return
        if round > self._known:
            report = next(self._reports, None)
            if report is None:
                self._is_over = True
                self._finish()
                return
            self._observers.on_round(report)
        metrics = records.logged(self._folder / "rounds", round).metrics
        self.values |= metrics
        self.round = round
        if self.scored in metrics:
            self.scored_round = round

    def _finish(self) -> None:
        """Write the final model, and let the observers end."""
        final = self._runner.final_state()
        checkpoint.save_params(final.served_params, self._folder / "model.safetensors")
        wall_s = self._experiment.start.wall_s + time.monotonic() - self._started
        self._observers.on_finish(summarise(self._experiment, final, wall_s))
