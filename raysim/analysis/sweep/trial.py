"""Execute one trial: its runs, one for each seed, side by side, round by round."""

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import RunFailedError
from raysim.core.storage.path import StoragePath
from raysim.experiment.start import environment, write_scenario
from raysim.population import population
from raysim.simulation import checkpoint, metrics, records
from raysim.simulation.build import build_scenario, resolved
from raysim.simulation.scenario import Runner
from raysim.simulation.state import Storage

SCORED = "accuracy/global"
"""A metric that scored rounds have, and no others."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a trial after a scored round.

    Attributes:
        round: The round.
        value: The mean over its runs of the metric by which trials are compared.
        accuracy: The mean of their test accuracy.
    """

    round: int
    value: float
    accuracy: float


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
        started = []
        for settings, folder, runner in runs:
            stack.enter_context(runner)
            started.append(_TrialRun(settings, folder, runner))
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
            if round > since and is_scored and all({metric, SCORED} <= run.values.keys() for run in started):
                values = [run.values[metric] for run in started]
                accuracies = [run.values[SCORED] for run in started]
                yield Result(round, statistics.fmean(values), statistics.fmean(accuracies))


def _check_known(runs: Sequence["_TrialRun"], metric: str) -> None:
    for run in runs:
        if metric not in run.values:
            raise RunFailedError(run.round, -1, f"none of the rounds up to here has had metric={metric!r}")


class _TrialRun:
    """One run of a trial, a round at a time; rounds that were executed before are read from their records."""

    def __init__(self, settings: ExperimentSettings, folder: StoragePath, runner: Runner) -> None:
        scenario = build_scenario(settings)
        settings = resolved(settings, scenario)
        folder.make()
        self._folder, self._runner = folder, runner
        if not (folder / "config.yaml").is_file():
            write_scenario(scenario, folder)
            workload, is_diagnosed = scenario.workload, settings.diagnostics.every is not None
            unlogged = metrics.left_out(workload.population.devices, is_diagnosed)
            metadata = {
                "data_sha256": workload.data.digest,
                "partition_sha256": population.digest(workload.population),
                "unlogged": sorted(unlogged),
                "environment": environment(),
                "full_model": asdict(scenario.costs.dense),
            }
            (folder / "run.json").write_text(json.dumps(metadata, indent=2))
            (folder / "config.yaml").write_text(loader.to_yaml(settings))
        start = checkpoint.resume_point(folder)
        storage = Storage(folder, settings.checkpoint.every, settings.checkpoint.keep)
        self._reports = runner.run(scenario, storage, start)
        self._known, self._is_over = start.round, False
        self.values: dict[str, float] = {}
        """The last value of each metric: rounds in which no client of a tier took part have none of that tier."""
        self.rounds, self.round, self.scored_round = settings.rounds, 0, 0

    def go_to(self, round: int) -> None:
        """Execute a round, or read its record; after the last one, write the final model."""
        if self._is_over:
            return
        if round > self._known and next(self._reports, None) is None:
            self._is_over = True
            self._keep()
            return
        metrics = records.logged(self._folder / "rounds", round).metrics
        self.values |= metrics
        self.round = round
        if SCORED in metrics:
            self.scored_round = round

    def _keep(self) -> None:
        """Write the final model."""
        checkpoint.save_params(self._runner.final_state().served_params, self._folder / "model.safetensors")
