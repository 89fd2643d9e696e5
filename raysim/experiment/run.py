"""Runs one experiment from settings to summary: its folder, its MLflow run, its honest end."""

import json
import platform
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from raysim.budgets.solver import BudgetSolver
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core import tensors
from raysim.core.errors import ReportLostError, RunFailedError, SettingError, StoppedError, TrackingLostError
from raysim.core.log import warn
from raysim.core.signals import FirstInterrupt
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath
from raysim.experiment import finish as telling
from raysim.experiment.cost import Prices, costs_of
from raysim.population import population, serialization
from raysim.simulation import checkpoint, records
from raysim.simulation.build import build_scenario, resolved
from raysim.simulation.scenario import Runner, Scenario
from raysim.simulation.state import FIRST, FinalState, RoundReport, Start, Storage, summary_of, targets_of
from raysim.terminal.progress import ProgressDisplay
from raysim.tracking import description as run_note
from raysim.tracking import run_metadata
from raysim.tracking.background import BackgroundLogger
from raysim.tracking.curves import LoggedSoFar
from raysim.tracking.mlflow_writer import MlflowWriter, resolve_uri
from raysim.tracking.run_folder import as_setting, check_folder, held, make_folder
from raysim.tracking.system_metrics import SystemMetrics


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """An experiment that is ready to run, or to go on.

    Attributes:
        settings: The experiment.
        folder: Where its files go.
        scenario: What is played.
        tracker: Writes its MLflow run; has its id where it goes on.
        start: Where it begins.
        known: What MLflow knows of it.
        summary: What it has reached, where only MLflow has not been told yet.
        is_held: Whether its folder is held by the caller.
    """

    settings: ExperimentSettings
    folder: StoragePath
    scenario: Scenario
    tracker: MlflowWriter
    start: Start = FIRST
    known: LoggedSoFar = field(default_factory=LoggedSoFar)
    summary: dict[str, Any] | None = None
    is_held: bool = False


def prepare(settings: ExperimentSettings, folder: AnyPath) -> Experiment:
    """Build the scenario, then open the MLflow store; nothing is written but an empty store and folder.

    Args:
        settings: The experiment.
        folder: Where its files go; must not hold a run already.

    Raises:
        SettingError: If a setting is not allowed.
    """
    uri, place = resolve_uri(settings.tracking.uri), storage_path(folder)
    check_folder(place)
    scenario = build_scenario(settings)
    make_folder(place)
    settings = resolved(settings, scenario)
    return Experiment(settings, place, scenario, MlflowWriter(uri, settings.experiment, beside=str(place.parent)))


def run(experiment: Experiment, runner: Runner, started: float) -> dict[str, Any]:
    """Run a prepared experiment to its end and return its summary.

    Args:
        experiment: What to run.
        runner: Where its clients are trained; already entered.
        started: `time.monotonic()` at the start of the command, for the wall time.

    Raises:
        SettingError: If what is about to run cannot be written down, in the folder or in MLflow.
        RunFailedError: If a round fails, or the results cannot be kept; checkpoints and records up to then are kept.
        StoppedError: If Ctrl-C asked for an end, or came after the last round; all rounds up to then are kept.
        TrackingLostError: If MLflow cannot be told of all of it; the files are complete.
        ReportLostError: If the report cannot be made; the results are complete, and MLflow has them.
    """
    log: BackgroundLogger | None = None
    if experiment.summary is None:
        runner.make_ready(experiment.scenario)  # before anything is written down
    with nullcontext() if experiment.is_held else held(experiment.folder):
        try:
            log = begin(experiment)
            summary = experiment.summary or _play(experiment, runner, log, started)
            lost = report_lost(experiment)
            with _as_failure(summary["rounds"], "the end of the run cannot be written down"):
                telling.log_results(_ending(experiment), log)
        except BaseException as error:
            telling.record_abort(experiment.tracker, experiment.folder, log, error)
            if isinstance(error, KeyboardInterrupt) and (experiment.folder / "summary.json").is_file():
                raise StoppedError(
                    f"interrupted after the last round; all results are in {experiment.folder}, and "
                    f"`raysim resume {experiment.folder}` does what is left: report and MLflow"
                ) from None
            raise
    if lost:
        raise ReportLostError(
            f"the report could not be made: {lost}; all results are in {experiment.folder}, and "
            f"`raysim report {experiment.folder}` tries again"
        )
    return summary


def _ending(experiment: Experiment) -> telling.Ending:
    settings, scenario, folder = experiment.settings, experiment.scenario, experiment.folder
    note = run_note.before(settings, scenario, str(folder))
    return telling.Ending(experiment.tracker, folder, scenario.workload, note, settings.model_name)


def _play(experiment: Experiment, runner: Runner, log: BackgroundLogger, started: float) -> dict[str, Any]:
    settings = experiment.settings
    storage = Storage(experiment.folder, settings.checkpoint.every, settings.checkpoint.keep)
    tracker = experiment.tracker
    with (
        _watched(tracker) if settings.tracking.system_metrics else nullcontext(),
        FirstInterrupt(lambda: _stop(runner, settings.rounds)) as interrupt,
    ):
        last = follow(
            runner.run(experiment.scenario, storage, experiment.start), log, settings.rounds, experiment.start
        )
    if interrupt.has_come and last < settings.rounds:
        raise StoppedError(f"stopped after round {last}; `raysim resume {experiment.folder}` goes on from there")
    final = runner.final_state()
    wall_s = experiment.start.wall_s + time.monotonic() - started
    costs = costs_of(Prices(**settings.costs.model_dump()), final.totals.energy_j, wall_s)
    summary = summarise(experiment, final) | {"wall_s": wall_s, "costs": costs}
    with _as_failure(final.round, "the results cannot be kept"):
        keep_results(experiment, final, summary)
    return summary


@contextmanager
def _watched(tracker: MlflowWriter) -> Iterator[None]:
    machine = SystemMetrics(tracker.uri, tracker.run_id)
    try:
        yield
    finally:
        machine.finish()


def _stop(runner: Runner, rounds: int) -> None:
    """Ask a run to stop, and say when it will."""
    try:
        when = f"round {min(runner.stop(), rounds)}"
    except Exception:  # who plays is lost, and is being replaced
        when = "the round in progress"
    warn(f"stopping after {when}; Ctrl-C again stops at once")


@contextmanager
def _as_failure(round: int, what: str) -> Iterator[None]:
    """Tell what goes wrong after the last round as a failure of the run."""
    try:
        yield
    except TrackingLostError:
        raise
    except OSError as error:
        raise RunFailedError(round, -1, f"{what}: {error}") from error
    except Exception as error:
        raise RunFailedError(round, -1, f"{what}: {type(error).__name__}: {error}", traceback.format_exc()) from error


def begin(experiment: Experiment) -> BackgroundLogger:
    """Write down what is about to run, and create its MLflow run or go on with it; return what logs its rounds."""
    folder, tracker = experiment.folder, experiment.tracker
    try:
        with as_setting(folder, "cannot be written"):
            _write_down(experiment)
    except TrackingLostError as error:
        raise SettingError(
            f"tracking.uri={tracker.uri!r} cannot be written: {error}; when MLflow is there, "
            f"`raysim resume {folder}` goes on"
        ) from None
    settings, scenario = experiment.settings, experiment.scenario
    log = BackgroundLogger(run_metadata.curves_of(tracker, settings, scenario, folder, experiment.known))
    log.cover(experiment.start.round)
    return log


def _write_down(experiment: Experiment) -> None:
    """Write what is about to run into the folder and MLflow; which run it is first, so that it is not made twice."""
    folder, tracker = experiment.folder, experiment.tracker
    digests = digests_of(experiment.scenario)
    if not (folder / "config.yaml").is_file():
        (folder / "config.yaml").write_text(loader.to_yaml(experiment.settings))
    if tracker.run_id:
        tracker.reopen()
    else:
        run_metadata.create(tracker, experiment.settings, experiment.scenario, folder, environment())
    if (folder / "run.json").is_file():
        telling.update_run_json(folder, state=None, failure=None)
    else:
        (folder / "run.json").write_text(json.dumps(description(experiment, digests), indent=2))
    run_metadata.describe(tracker, experiment.settings, experiment.scenario, digests)
    for file in (folder / "config.yaml", folder / "run.json", *write_scenario(experiment.scenario, folder)):
        tracker.artifact(file)


def write_scenario(scenario: Scenario, folder: StoragePath) -> list[StoragePath]:
    """Write down what reports and replays need of a scenario: channel groups, budgets and devices."""
    plan, devices = scenario.workload.plan, scenario.workload.population.devices
    return [
        (folder / "plan.json").write(plan.save),
        write_budgets(scenario.budget, folder),
        (folder / "devices.parquet").write(lambda partial: serialization.save(devices, partial)),
    ]


def description(experiment: Experiment, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return what run.json tells: which run it is, and what its bits depend on beyond config.yaml."""
    tracker, workload = experiment.tracker, experiment.scenario.workload
    return {
        "run_id": tracker.run_id,
        "tracking_uri": tracker.uri,
        "experiment_id": tracker.experiment_id,
        "output_dir": str(experiment.folder),
        **{f"{what}_sha256": digest for what, digest in digests.items()},
        "config_sha256": loader.digest(experiment.settings),
        "full_model": asdict(experiment.scenario.costs.dense),
        "leftover_rows": population.leftover_rows(workload.population, len(workload.data.train_labels)),
        "environment": environment(),
        "finished": False,
    }


def digests_of(scenario: Scenario) -> dict[str, str]:
    """Return the hashes of the data, and of who owns which rows and devices."""
    workload = scenario.workload
    return {"data": workload.data.digest, "partition": population.digest(workload.population)}


def write_budgets(solver: BudgetSolver | None, folder: StoragePath) -> StoragePath:
    """Write down how budgets are solved, so that it can be done again without the model; null where they are not."""
    content = None if solver is None else solver.to_json()
    return (folder / "budgets.json").write_text(json.dumps(content))


def environment() -> dict[str, str]:
    """Return what equal bits depend on beyond the settings: versions and the CPU's type."""
    versions = {f"version.{name}": version(name) for name in ("raysim", "torch", "numpy", "ray", "mlflow")}
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        **versions,
        "version.python": platform.python_version(),
        "cpu": f"{platform.machine()} {capability}",
    }


def follow(reports: Iterator[RoundReport], log: BackgroundLogger, rounds: int, start: Start = FIRST) -> int:
    """Show each round as it arrives; let those be logged that a checkpoint covers; return the last one."""
    last = start.round
    with ProgressDisplay(rounds, last) as display:
        for report in reports:
            last = report.round
            if report.is_saved:
                log.cover(last)
            display.show(report)
    return last


def summarise(experiment: Experiment, final: FinalState) -> dict[str, Any]:
    """Return what a run reached and spent."""
    totals, settings = final.totals, experiment.settings
    return {
        "run_id": experiment.tracker.run_id,
        "experiment": settings.experiment,
        "method": settings.method.name,
        "seed": settings.seed,
        "rounds": final.round,
        "accuracy": totals.accuracy,
        "best_accuracy": totals.best_accuracy,
        **summary_of(totals),
        "targets": targets_of(totals, experiment.scenario.targets),
        "full_model": asdict(experiment.scenario.costs.dense),
        "params_sha256": tensors.digest(final.params),
        "output_dir": str(experiment.folder),
        "tracking_uri": experiment.tracker.uri,
        "experiment_id": experiment.tracker.experiment_id,
    }


def keep_results(experiment: Experiment, final: FinalState, summary: Mapping[str, Any]) -> None:
    """Write the final model, the tables of rounds and clients, and at the end the summary."""
    folder = experiment.folder
    checkpoint.save_params(final.served_params, folder / "model.safetensors")
    records.merge_all(folder)
    draw_partition(experiment)
    if (folder / "report.html").is_file():
        (folder / "report.html").remove()  # of the rounds before it was stopped
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))


def report_lost(experiment: Experiment) -> str:
    """Write the report; a run has its results without one, so that what goes wrong is told, not raised.

    Where all rounds had been played before and there is a report, it is left as it is.

    Returns:
        Why it could not be made, else nothing.
    """
    if experiment.summary is not None and (experiment.folder / "report.html").is_file():
        return ""
    try:
        from raysim.report import write  # Plotly would delay round 1

        write.of_ended(experiment.folder)
    except Exception as error:
        warn(traceback.format_exc())
        return f"{type(error).__name__}: {error}"
    return ""


def draw_partition(experiment: Experiment) -> None:
    """Write down and draw who owns which classes; at the end, since importing Matplotlib would delay round 1."""
    from raysim.data import figure

    settings, workload = experiment.settings, experiment.scenario.workload
    title = f"{settings.data.name} dealt by {settings.data.partition.name}, seed {settings.split_seed}"
    owned = (workload.population.train, workload.population.heldout)
    clients, counts = figure.class_counts(workload.data.train_labels, owned, workload.data.num_classes)
    place, label = np.nonzero(counts)
    rows = {"client": clients[place], "label": label, "rows": counts[place, label]}
    records.write_all([rows], experiment.folder / "partition.parquet")
    (experiment.folder / "partition.png").write(
        lambda partial: figure.draw(partial, workload.data.train_labels, owned, workload.data.num_classes, title)
    )
