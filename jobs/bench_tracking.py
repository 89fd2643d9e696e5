"""Measure the cost of logging to MLflow in rounds of 10,000 clients.

Both sides run the same rounds from the same start and write the same records; one of them logs the rounds to an
SQLite store as a run does, in the background, and waits for the rest at the end. First both prove that they did the
same work and that MLflow has every point; then they are timed in turns. Prints one JSON line with `--json`, else a
table.

`--client-runs` instead times the runs of single clients (`tracking.client_runs`): to begin and end them, and to log
one round to all of them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark import medians_in_turns, print_figures

from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core import tensors
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.executors.in_process import InProcessExecutor
from raysim.executors.ray.runner import RayRunner
from raysim.simulation import metrics, records
from raysim.simulation.build import build_scenario
from raysim.simulation.loop import run_rounds
from raysim.simulation.records import Point
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import ServerState, Storage
from raysim.simulation.transition import initial_state
from raysim.tracking import run_metadata
from raysim.tracking.background import BackgroundLogger
from raysim.tracking.curves import RunCurves
from raysim.tracking.mlflow_writer import MlflowWriter, resolve_uri
from raysim.tracking.system_metrics import SystemMetrics

CONFIG = Path(__file__).parent / "configs" / "bench_tracking.yaml"
PATIENCE_S = 600.0


class Sides:
    """The same rounds with and without logging."""

    def __init__(
        self, settings: ExperimentSettings, scenario: Scenario, executor: Executor, folder: Path, store: str | None
    ) -> None:
        self._settings, self._scenario, self._executor, self._folder = settings, scenario, executor, folder
        self._tracker = MlflowWriter(resolve_uri(store or f"sqlite:///{folder}/mlflow.db"), "bench")
        self._params = loader.flatten(settings)
        self._runs: list[str] = []
        self._count = 0
        self.thread_s: list[float] = []
        """CPU seconds of the thread that logs, for all rounds."""
        self.metrics_s: list[float] = []
        """Seconds that the metrics of a round take, which both sides compute and record."""

    def make_runs(self, count: int) -> None:
        """Create the MLflow runs: that is no part of a round."""
        digests = {"data": "0" * 64, "partition": "0" * 64}
        for number in range(count):
            self._runs.append(self._tracker.start(f"bench {number}", self._params, {"data": "digits"}, digests))

    def plain(self) -> ServerState:
        """Run the rounds without logging."""
        return self._run_rounds(self._new_folder(), None)

    def logged(self) -> ServerState:
        """Run the rounds and log them to MLflow."""
        folder, spent, tracker = self._new_folder(), [0.0], self._tracker
        tracker.run_id = self._runs.pop()
        without = metrics.left_out(self._scenario.workload.population.devices, False)

        def send(points: Sequence[Point]) -> None:
            tracker.log(points)
            spent[0] = time.thread_time()

        curves = RunCurves(lambda round: records.logged(folder / "rounds", round, without), send)
        log = BackgroundLogger([curves])
        machine = SystemMetrics(tracker.uri, tracker.run_id)
        state = self._run_rounds(folder, log)
        machine.finish()
        log.close(PATIENCE_S, is_over=True)
        self.thread_s.append(spent[0])
        return state

    def check(self) -> int:
        """Prove that both sides do the same work, and that MLflow has all of it; return how many curves a run has."""
        plain, logged = self.plain(), self.logged()
        if tensors.digest(plain.params) != tensors.digest(logged.params):
            raise SystemExit("the two sides did not do the same work")
        client, run_id = self._tracker.client, self._tracker.run_id
        names = [name for name in client.get_run(run_id).data.metrics if not name.startswith("system/")]
        steps = [point.step for point in client.get_metric_history(run_id, "clock/wall_s")]
        if steps != list(range(1, self._scenario.rounds + 1)):
            raise SystemExit(f"MLflow has rounds {steps} of {self._scenario.rounds}")
        return len(names)

    def client_runs(self) -> dict[str, float]:
        """Run the rounds, then log them one after another to the runs of single clients; return the seconds."""
        folder, seconds = self._new_folder(), list[float]()
        self._tracker.run_id = self._runs.pop()
        self._run_rounds(folder, None)
        curves = run_metadata.of_clients(self._tracker, self._settings, self._scenario, folder)
        started = time.perf_counter()
        for last in range(1, self._scenario.rounds + 1):
            curves.flush(last, hurry=True)
            seconds.append(time.perf_counter() - started - sum(seconds))
        round_s, num_calls = statistics.median(seconds[1:]), curves.num_calls
        started = time.perf_counter()
        curves.finish()
        ended = curves.num_calls - num_calls
        return {
            "client_runs": ended,
            "begin_s": seconds[0] - round_s,
            "round_logged_s": round_s,
            "end_s": time.perf_counter() - started,
        }

    def _new_folder(self) -> StoragePath:
        self._count += 1
        return storage_path(self._folder / str(self._count))

    def _run_rounds(self, folder: StoragePath, log: BackgroundLogger | None) -> ServerState:
        state = initial_state(self._scenario)
        for after, report in run_rounds(self._scenario, state, self._executor, Storage(folder, 1, 2)):
            state, started = after, time.perf_counter()
            metrics.metrics_of(report)
            self.metrics_s.append(time.perf_counter() - started)
            if log is not None:
                log.cover(report.round)
        return state


def measure(
    settings: ExperimentSettings, executor: Executor, scenario: Scenario, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Time both sides in turns, or the runs of single clients."""
    repeats = arguments.repeats
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(settings, scenario, executor, Path(folder), arguments.store)
        sides.make_runs(1 + repeats)
        if arguments.client_runs:
            return sides.client_runs()
        names = sides.check()
        sides.thread_s.clear()
        seconds = medians_in_turns({"plain": sides.plain, "logged": sides.logged}, repeats)
    rounds = scenario.rounds
    return {
        "clients_per_round": scenario.cohort_size,
        "rounds": rounds,
        "metric_names": names,
        "round_s": seconds["plain"] / rounds,
        "logged_round_s": seconds["logged"] / rounds,
        "cost_percent": 100 * (seconds["logged"] / seconds["plain"] - 1),
        "logging_cpu_percent": 100 * statistics.median(sides.thread_s) / seconds["plain"],
        "metrics_percent": 100 * rounds * statistics.median(sides.metrics_s) / seconds["plain"],
    }


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure in this process, or on actors."""
    settings = loader.load(CONFIG, arguments.overrides)
    scenario = build_scenario(settings)
    if not arguments.actors:
        return measure(settings, InProcessExecutor(scenario.workload), scenario, arguments)
    with RayRunner(arguments.actors, None) as runner:
        return measure(settings, runner.executor(scenario), scenario, arguments)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=0, help="run on so many actors of a local Ray [0: in-process]")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change a setting")
    parser.add_argument("--store", help="MLflow store [an SQLite file of its own]")
    parser.add_argument("--client-runs", action="store_true", help="time the runs of single clients")
    print_figures(parser, lambda arguments: {**measured(arguments), "actors": arguments.actors})


if __name__ == "__main__":
    main()
