"""Runs one experiment from settings to summary: its folder, its MLflow run, its honest end."""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from raysim import arrays, checkpoint, config_file, device_storage, files, population, records, simulation
from raysim.budget_solver import BudgetSolver
from raysim.config import ExperimentSettings
from raysim.console import ProgressDisplay, say
from raysim.errors import SettingError
from raysim.forecast import summary_of, targets_of
from raysim.methods import resolve as methods
from raysim.price import Prices, costs_of
from raysim.pruning import submodel
from raysim.scenario import Scenario
from raysim.tracking import MlflowTracker, resolve_uri
from raysim.types import RoundReport, ServerState, Storage


class Runner(Protocol):
    """Plays a scenario somewhere; a context that starts and stops what it needs."""

    def __enter__(self) -> "Runner": ...

    def __exit__(self, *_: object) -> None: ...

    def make_ready(self, scenario: Scenario) -> None:
        """Wait until the first round could start; raise SettingError where that cannot be."""
        ...

    def run(self, scenario: Scenario, storage: Storage) -> Iterator[RoundReport]:
        """Yield the report of each round."""
        ...

    def final_state(self) -> ServerState:
        """Return the state after the last round."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """An experiment that is ready to run; nothing has been written yet but an empty store and folder."""

    settings: ExperimentSettings
    folder: Path
    scenario: Scenario
    tracker: MlflowTracker


def prepare(settings: ExperimentSettings, folder: Path) -> Experiment:
    """Build the scenario, then open the MLflow store.

    Args:
        settings: The experiment.
        folder: Where its files go; must not hold a run already.

    Raises:
        SettingError: If a setting is not allowed.
    """
    uri = resolve_uri(settings.tracking.uri)
    check_folder(folder)
    scenario = simulation.build(settings)
    make_folder(folder)
    return Experiment(settings, folder, scenario, MlflowTracker(uri, settings.experiment))


def run(experiment: Experiment, runner: Runner, started: float) -> dict[str, Any]:
    """Run a prepared experiment and return its summary.

    Args:
        experiment: What to run.
        runner: Where its clients are trained; already entered.
        started: `time.monotonic()` at the start of the command, for the wall time.

    Raises:
        RunFailedError: If a round fails; checkpoints and records up to the round before are kept.
    """
    settings, tracker, folder = experiment.settings, experiment.tracker, experiment.folder
    runner.make_ready(experiment.scenario)  # before anything is written down
    status = "FAILED"
    try:
        begin(experiment)
        storage = Storage(folder, settings.checkpoint.every, settings.checkpoint.keep)
        follow(runner.run(experiment.scenario, storage), tracker, settings.rounds)
        state = runner.final_state()
        wall_s = time.monotonic() - started
        costs = costs_of(Prices(**settings.costs.model_dump()), state.totals.energy_j, wall_s)
        summary = summarise(experiment, state) | {"wall_s": wall_s, "costs": costs}
        keep_results(experiment, state, summary)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        with suppress(Exception):
            tracker.note("failure", str(error))
        raise
    finally:
        if status != "FINISHED":
            with suppress(Exception):
                keep_records(tracker, folder)
        if tracker.run_id:
            tracker.end(status)
    return summary


def check_folder(folder: Path) -> None:
    """Raise SettingError if the folder holds a run already."""
    if (folder / "config.yaml").exists():
        raise SettingError(f"--output={str(folder)!r} holds a run already; give a folder without one")


def make_folder(folder: Path) -> None:
    """Make the run's folder; raise SettingError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--output={str(folder)!r} cannot be made: {error.strerror}") from None


def begin(experiment: Experiment) -> None:
    """Create the MLflow run and write down what is about to run, before the first round."""
    settings, tracker, folder = experiment.settings, experiment.tracker, experiment.folder
    workload = experiment.scenario.workload
    digests = {"data": workload.data.digest, "partition": population.digest(workload.population)}
    tags = {"method": settings.method.name, "data": settings.data.name, "model": settings.model.name}
    name = f"{settings.method.name} {settings.data.name} seed {settings.seed}"
    leftover = population.leftover_rows(workload.population, len(workload.data.train_labels))
    if leftover is not None:
        tags["leftover_rows"] = str(leftover)
    run_id = tracker.start(name, config_file.flatten(settings), tags | environment(), digests)
    content = {
        "run_id": run_id,
        "tracking_uri": tracker.uri,
        "experiment_id": tracker.experiment_id,
        **{f"{what}_sha256": digest for what, digest in digests.items()},
        "leftover_rows": leftover,
        "environment": environment(),
    }
    files.write_text(folder / "config.yaml", config_file.to_yaml(settings))
    files.write_text(folder / "run.json", json.dumps(content, indent=2))
    workload.plan.save(folder / "plan.json")
    tracker.artifact(write_budgets(experiment.scenario.budget, folder))
    tracker.artifact(device_storage.save(workload.population.devices, folder / "devices.parquet"))
    tracker.artifact(folder / "config.yaml")


def write_budgets(solver: BudgetSolver | None, folder: Path) -> Path:
    """Write down how budgets are solved, so that it can be done again without the model; null where they are not."""
    content = None if solver is None else solver.to_json()
    return files.write_text(folder / "budgets.json", json.dumps(content))


def environment() -> dict[str, str]:
    """Return what equal bits depend on beyond the settings: versions and the CPU's type."""
    versions = {f"version.{name}": version(name) for name in ("raysim", "torch", "numpy", "ray", "mlflow")}
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        **versions,
        "version.python": platform.python_version(),
        "cpu": f"{platform.machine()} {capability}",
    }


def follow(reports: Iterator[RoundReport], tracker: MlflowTracker, rounds: int) -> None:
    """Show and log each round as it arrives."""
    with ProgressDisplay(rounds) as display:
        for report in reports:
            tracker.track(report)
            display.show(report)


def summarise(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """Return what a run reached and spent."""
    totals, settings = state.totals, experiment.settings
    return {
        "run_id": experiment.tracker.run_id,
        "experiment": settings.experiment,
        "method": settings.method.name,
        "seed": settings.seed,
        "rounds": state.round,
        "accuracy": totals.accuracy,
        "best_accuracy": totals.best_accuracy,
        **summary_of(totals),
        "targets": targets_of(totals, experiment.scenario.targets),
        "full_model": asdict(experiment.scenario.costs.dense),
        "params_sha256": arrays.digest(state.params),
        "output_dir": str(experiment.folder),
        "tracking_uri": experiment.tracker.uri,
        "experiment_id": experiment.tracker.experiment_id,
    }


def keep_results(experiment: Experiment, state: ServerState, summary: Mapping[str, Any]) -> None:
    """Write the final model, the clients' table and the summary; upload all of them."""
    folder, tracker, workload = experiment.folder, experiment.tracker, experiment.scenario.workload
    params = methods.served(experiment.scenario.method, workload.plan, state.params, state.memory)
    checkpoint.save_params(params, folder / "model.safetensors")
    files.write_text(folder / "summary.json", json.dumps(summary, indent=2))
    keep_records(tracker, folder)
    draw_partition(experiment, folder / "partition.png")
    for name in ("model.safetensors", "summary.json", "plan.json", "partition.png"):
        tracker.artifact(folder / name)
    say("logging the final model to MLflow")
    submodel.load_params(workload.model, params)
    example, _ = workload.data.test_rows(np.arange(2))
    tracker.model(workload.model, example)


def draw_partition(experiment: Experiment, path: Path) -> None:
    """Draw who owns which classes; at the end, since importing Matplotlib would delay round 1."""
    from raysim.data import figure

    settings, workload = experiment.settings, experiment.scenario.workload
    title = f"{settings.data.name} dealt by {settings.data.partition.name}, seed {settings.split_seed}"
    owned = (workload.population.train, workload.population.heldout)
    figure.draw(path, workload.data.train_labels, owned, workload.data.num_classes, title)


def keep_records(tracker: MlflowTracker, folder: Path) -> None:
    """Merge the records of rounds and their clients and upload them."""
    for name in ("rounds", "clients"):
        tracker.artifact(records.merge_parts(folder / name, folder / f"{name}.parquet"))
