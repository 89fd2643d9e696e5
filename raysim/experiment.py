"""Runs one experiment from settings to summary: its folder, its MLflow run, its honest end."""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from raysim import arrays, checkpoint, config_file, population, records, simulation
from raysim.config import ExperimentSettings
from raysim.console import ProgressDisplay, say
from raysim.errors import RunFailedError, SettingError
from raysim.forecast import summary_of
from raysim.pruning import submodel
from raysim.rounds import Scenario
from raysim.simulation import Storage
from raysim.tracking import MlflowTracker, resolve_uri
from raysim.types import RoundReport, ServerState


class Runner(Protocol):
    """Plays a scenario somewhere; a context that starts and stops what it needs."""

    def __enter__(self) -> "Runner": ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, scenario: Scenario, storage: Storage) -> Iterator[RoundReport]:
        """Yield the report of each round."""
        ...

    def final_state(self) -> ServerState:
        """Return the state after the last round."""
        ...


def run(settings: ExperimentSettings, folder: Path, runner: Runner) -> dict[str, Any]:
    """Run an experiment and return its summary.

    Args:
        settings: The experiment.
        folder: Where its files go; must not hold a run already.
        runner: Where its clients are trained.

    Raises:
        SettingError: If a setting is not allowed; nothing has been started or written then.
        RunFailedError: If a round fails; checkpoints and records up to the round before are kept.
    """
    started = time.monotonic()
    simulation.check_names(settings)
    check_folder(folder)
    uri = resolve_uri(settings.tracking.uri)
    building = ThreadPoolExecutor(1).submit(simulation.build, settings)
    with runner:
        scenario = building.result()
        tracker = MlflowTracker(uri, settings.experiment)
        begin(tracker, settings, scenario, folder)
        status = "FAILED"
        try:
            storage = Storage(folder, settings.checkpoint.every, settings.checkpoint.keep)
            follow(runner.run(scenario, storage), tracker, scenario.rounds)
            state = runner.final_state()
            summary = {
                "run_id": tracker.run_id,
                **summarise(settings, state),
                "wall_s": time.monotonic() - started,
                "output_dir": str(folder),
                "tracking_uri": uri,
                "experiment_id": tracker.experiment_id,
            }
            keep_results(tracker, scenario, state, summary, folder)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except Exception as error:
            tracker.note("failure", str(error))
            raise
        finally:
            if status != "FINISHED":
                with suppress(Exception):
                    keep_records(tracker, folder)
            tracker.end(status)
    return summary


def check_folder(folder: Path) -> None:
    """Raise SettingError if the folder holds a run, or cannot be written."""
    if (folder / "config.yaml").exists():
        raise SettingError(f"--output={str(folder)!r} holds a run already; give a folder without one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--output={str(folder)!r} cannot be made: {error.strerror}") from None


def begin(tracker: MlflowTracker, settings: ExperimentSettings, scenario: Scenario, folder: Path) -> None:
    """Create the MLflow run and write down what is about to run, before the first round."""
    digests = {
        "data": scenario.workload.data.digest,
        "partition": population.digest(scenario.workload.population),
    }
    tags = {"method": settings.method.name, "data": settings.data.name, "model": settings.model.name}
    name = f"{settings.method.name} {settings.data.name} seed {settings.seed}"
    run_id = tracker.start(name, config_file.flatten(settings), tags | environment(), digests)
    (folder / "config.yaml").write_text(config_file.to_yaml(settings), encoding="utf-8")
    content = {
        "run_id": run_id,
        "tracking_uri": tracker.uri,
        "experiment_id": tracker.experiment_id,
        **{f"{what}_sha256": digest for what, digest in digests.items()},
        "environment": environment(),
    }
    (folder / "run.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    scenario.workload.plan.save(folder / "plan.json")
    tracker.artifact(folder / "config.yaml")


def environment() -> dict[str, str]:
    """Return what equal bits depend on beyond the settings: versions and the CPU's type."""
    versions = {f"version.{name}": version(name) for name in ("raysim", "torch", "numpy", "ray", "mlflow")}
    capability = torch.backends.cpu.get_cpu_capability()
    return {**versions, "version.python": platform.python_version(), "cpu": f"{platform.machine()} {capability}"}


def follow(reports: Iterator[RoundReport], tracker: MlflowTracker, rounds: int) -> None:
    """Show and log each round as it arrives."""
    with ProgressDisplay(rounds) as display:
        for report in reports:
            tracker.track(report)
            display.show(report)


def summarise(settings: ExperimentSettings, state: ServerState) -> dict[str, Any]:
    """Return what a run reached and spent."""
    totals = state.totals
    return {
        "experiment": settings.experiment,
        "method": settings.method.name,
        "seed": settings.seed,
        "rounds": state.round,
        "accuracy": totals.accuracy,
        "best_accuracy": totals.best_accuracy,
        **summary_of(totals),
        "params_sha256": arrays.digest(state.params),
    }


def keep_results(
    tracker: MlflowTracker, scenario: Scenario, state: ServerState, summary: Mapping[str, Any], folder: Path
) -> None:
    """Write the final model, the clients' table and the summary; upload all three."""
    checkpoint.save_params(state.params, folder / "model.safetensors")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    keep_records(tracker, folder)
    for name in ("model.safetensors", "summary.json", "plan.json"):
        tracker.artifact(folder / name)
    model = scenario.workload.model
    submodel.load_params(model, state.params)
    example, _ = scenario.workload.data.test_rows(np.arange(2))
    say("logging the final model to MLflow")
    tracker.model(model, example)


def keep_records(tracker: MlflowTracker, folder: Path) -> None:
    """Merge the rounds' client records and upload them."""
    tracker.artifact(records.merge_parts(folder / "clients", folder / "clients.parquet"))


__all__ = ["RunFailedError", "Runner", "run"]
