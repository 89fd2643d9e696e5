"""Plays one trial: its runs, one for each seed, round by round side by side."""

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
from raysim.simulation import checkpoint as continuation
from raysim.simulation.build import build_scenario, resolved
from raysim.simulation.scenario import Runner
from raysim.simulation.state import Storage

SCORED = "accuracy/global"
"""A metric that all scored rounds have, and no others."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a trial has reached after a scored round.

    Attributes:
        round: The round.
        value: Mean over its runs of the metric that trials are held against each other by.
        accuracy: Mean of their test accuracy.
    """

    round: int
    value: float
    accuracy: float


def results(
    runs: Sequence[tuple[ExperimentSettings, StoragePath, Runner]], metric: str, since: int = 0
) -> Iterator[Result]:  # fmt: skip
    """Play what is left of a trial and yield what it has reached after each scored round.

    A run stands with the last value it has had, in whichever round; nothing is yielded before all runs have had one.
    What is kept of a run's end is on disk before its last result is yielded, since whoever takes that may end this
    process.

    Args:
        runs: Settings of each run, its folder, and what plays it; entered here.
        metric: Name of the metric.
        since: The last round whose result is known already.

    Raises:
        SettingError: If a setting does not fit the data or the model.
        RunFailedError: If a run fails, or one has ended without such a metric.
    """
    with ExitStack() as stack:
        players = []
        for settings, folder, runner in runs:
            stack.enter_context(runner)
            players.append(_Player(settings, folder, runner))
        for round in itertools.count(1):
            for player in players:
                player.go_to(round)
            if all(player.round < round for player in players):
                _check_known(players, metric)
                return
            if all(player.round == player.rounds for player in players):
                for player in players:
                    player.go_to(round + 1)
            is_scored = any(player.scored_round == round for player in players)
            if round > since and is_scored and all({metric, SCORED} <= player.values.keys() for player in players):
                values = [player.values[metric] for player in players]
                accuracies = [player.values[SCORED] for player in players]
                yield Result(round, statistics.fmean(values), statistics.fmean(accuracies))


def _check_known(players: Sequence["_Player"], metric: str) -> None:
    for player in players:
        if metric not in player.values:
            raise RunFailedError(player.round, -1, f"none of the rounds up to here has had metric={metric!r}")


class _Player:
    """One run of a trial, played a round at a time; rounds that were played before come from their records."""

    def __init__(self, settings: ExperimentSettings, folder: StoragePath, runner: Runner) -> None:
        scenario = build_scenario(settings)
        settings = resolved(settings, scenario)
        folder.make()
        self._folder, self._runner = folder, runner
        if not (folder / "config.yaml").is_file():
            write_scenario(scenario, folder)
            workload, is_diagnosed = scenario.workload, settings.diagnostics.every is not None
            untold = metrics.left_out(workload.population.devices, is_diagnosed)
            noted = {
                "data_sha256": workload.data.digest, "partition_sha256": population.digest(workload.population),
                "untold": sorted(untold), "environment": environment(), "full_model": asdict(scenario.costs.dense),
            }  # fmt: skip
            (folder / "run.json").write_text(json.dumps(noted, indent=2))
            (folder / "config.yaml").write_text(loader.to_yaml(settings))
        start = continuation.resume_point(folder)
        storage = Storage(folder, settings.checkpoint.every, settings.checkpoint.keep)
        self._reports = runner.run(scenario, storage, start)
        self._known, self._is_over = start.round, False
        self.values: dict[str, float] = {}
        """The last value of each metric: a round in which no client of a tier took part has none of that tier."""
        self.rounds, self.round, self.scored_round = settings.rounds, 0, 0

    def go_to(self, round: int) -> None:
        """Play a round, or read what is recorded of it; past the last one what the run leaves is kept."""
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
