"""Runs one experiment from settings to summary: its folder, its MLflow run, its honest end."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from threading import Thread
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file

from raysim import arrays, checkpoint, config_file, device_storage, places, population, records, simulation
from raysim.budget_solver import BudgetSolver
from raysim.config import ExperimentSettings
from raysim.console import ProgressDisplay, say
from raysim.errors import SettingError, TrackingLostError, reason_of
from raysim.forecast import summary_of, targets_of
from raysim.methods import resolve as methods
from raysim.place import Place
from raysim.places import Given
from raysim.price import Prices, costs_of
from raysim.pruning import submodel
from raysim.round_log import RoundLog
from raysim.scenario import Scenario
from raysim.tracking import MlflowTracker, few_retries, resolve_uri
from raysim.types import FIRST, RoundReport, ServerState, Start, Storage

ANSWER_S = 60
"""How long MLflow may take to answer; a large model takes its time to travel."""
PATIENCE_S = 30.0
"""How long a run that is over waits for MLflow."""
RECORDS = ("rounds", "clients")
ARTIFACTS = ("rounds.parquet", "clients.parquet", "model.safetensors", "summary.json", "plan.json", "partition.png")
FAREWELL_S = {"KILLED": 1.0, "FAILED": 30.0}
"""How long an unfinished run takes at most to tell MLflow; `ray job stop` gives three seconds in all."""


class Runner(Protocol):
    """Plays a scenario somewhere; a context that starts and stops what it needs."""

    def __enter__(self) -> "Runner": ...

    def __exit__(self, *_: object) -> None: ...

    def make_ready(self, scenario: Scenario) -> None:
        """Wait until the first round could start; raise SettingError where that cannot be."""
        ...

    def run(self, scenario: Scenario, storage: Storage, start: Start = FIRST) -> Iterator[RoundReport]:
        """Yield the report of each round that is left."""
        ...

    def final_state(self) -> ServerState:
        """Return the state after the last round."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """An experiment that is ready to run, or to go on.

    Attributes:
        settings: The experiment.
        folder: Where its files go.
        scenario: What is played.
        tracker: Writes its MLflow run; has its id where it goes on.
        start: Where it begins.
        logged: The last round that MLflow knows.
        summary: What it has reached, where only MLflow has not been told yet.
    """

    settings: ExperimentSettings
    folder: Place
    scenario: Scenario
    tracker: MlflowTracker
    start: Start = FIRST
    logged: int = 0
    summary: dict[str, Any] | None = None


def prepare(settings: ExperimentSettings, folder: Given) -> Experiment:
    """Build the scenario, then open the MLflow store; nothing is written but an empty store and folder.

    Args:
        settings: The experiment.
        folder: Where its files go; must not hold a run already.

    Raises:
        SettingError: If a setting is not allowed.
    """
    uri, place = resolve_uri(settings.tracking.uri), places.at(folder)
    check_folder(place)
    scenario = simulation.build(settings)
    make_folder(place)
    settings = simulation.resolved(settings, scenario)
    return Experiment(settings, place, scenario, MlflowTracker(uri, settings.experiment, beside=str(place.parent)))


def run(experiment: Experiment, runner: Runner, started: float) -> dict[str, Any]:
    """Run a prepared experiment to its end and return its summary.

    Args:
        experiment: What to run.
        runner: Where its clients are trained; already entered.
        started: `time.monotonic()` at the start of the command, for the wall time.

    Raises:
        RunFailedError: If a round fails; checkpoints and records up to the round before are kept.
        TrackingLostError: If MLflow cannot be told of all of it; the files are complete.
    """
    log: RoundLog | None = None
    if experiment.summary is None:
        runner.make_ready(experiment.scenario)  # before anything is written down
    with few_retries(ANSWER_S), held(experiment.folder):
        try:
            log = begin(experiment)
            summary = experiment.summary or _play(experiment, runner, log, started)
            tell(experiment, log)
        except BaseException as error:
            leave(experiment, log, error)
            raise
    return summary


def _play(experiment: Experiment, runner: Runner, log: RoundLog, started: float) -> dict[str, Any]:
    settings = experiment.settings
    storage = Storage(experiment.folder, settings.checkpoint.every, settings.checkpoint.keep)
    follow(runner.run(experiment.scenario, storage, experiment.start), log, settings.rounds)
    state = runner.final_state()
    wall_s = experiment.start.wall_s + time.monotonic() - started
    costs = costs_of(Prices(**settings.costs.model_dump()), state.totals.energy_j, wall_s)
    summary = summarise(experiment, state) | {"wall_s": wall_s, "costs": costs}
    keep_results(experiment, state, summary)
    return summary


def check_folder(folder: Place) -> None:
    """Raise SettingError if the folder holds a run already."""
    with _as_setting(folder, "cannot be read"):
        holds_a_run = (folder / "config.yaml").is_file()
    if holds_a_run:
        raise SettingError(
            f"--output={str(folder)!r} holds a run already; give a folder without one, or go on with `raysim resume`"
        )


def make_folder(folder: Given) -> None:
    """Make a folder; raise SettingError if that cannot be."""
    place = places.at(folder)
    with _as_setting(place, "cannot be made"):
        place.make()


@contextmanager
def _as_setting(folder: Place, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingError(f"--output={str(folder)!r} {what}: {error.strerror or reason_of(error)}") from None


@contextmanager
def held(folder: Place) -> Iterator[None]:
    """Hold the run's folder, so that no other process writes into it.

    Raises:
        SettingError: If another process does.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.held())
        except BlockingIOError:
            raise SettingError(f"{str(folder)!r} is in use: its run is going on in another process") from None
        yield


def begin(experiment: Experiment) -> RoundLog:
    """Write down what is about to run, and create its MLflow run or go on with it; return what logs its rounds."""
    folder, tracker = experiment.folder, experiment.tracker
    with _as_setting(folder, "cannot be written"):
        if not (folder / "config.yaml").is_file():
            (folder / "config.yaml").write_text(config_file.to_yaml(experiment.settings))
    digests = digests_of(experiment.scenario)
    if tracker.run_id:
        tracker.reopen()
    else:
        create_run(experiment, digests)
    if not (folder / "run.json").is_file():
        (folder / "run.json").write_text(json.dumps(description(experiment, digests), indent=2))
    plan, devices = experiment.scenario.workload.plan, experiment.scenario.workload.population.devices
    written = [
        folder / "config.yaml",
        folder / "run.json",
        (folder / "plan.json").write(plan.save),
        write_budgets(experiment.scenario.budget, folder),
        (folder / "devices.parquet").write(lambda partial: device_storage.save(devices, partial)),
    ]
    for file in written:
        tracker.artifact(file)
    log = RoundLog(lambda round: records.logged(folder / "rounds", round), tracker.log_rounds, experiment.logged)
    log.cover(experiment.start.round)
    return log


def create_run(experiment: Experiment, digests: Mapping[str, str]) -> None:
    """Create the MLflow run and tell it what is about to run."""
    settings, workload = experiment.settings, experiment.scenario.workload
    tags = {"method": settings.method.name, "data": settings.data.name, "model": settings.model.name}
    name = f"{settings.method.name} {settings.data.name} seed {settings.seed}"
    leftover = population.leftover_rows(workload.population, len(workload.data.train_labels))
    if leftover is not None:
        tags["leftover_rows"] = str(leftover)
    experiment.tracker.start(name, config_file.flatten(settings), tags | environment(), digests)


def description(experiment: Experiment, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return what run.json tells: which run it is, and what its bits depend on beyond config.yaml."""
    tracker, workload = experiment.tracker, experiment.scenario.workload
    return {
        "run_id": tracker.run_id,
        "tracking_uri": tracker.uri,
        "experiment_id": tracker.experiment_id,
        "output_dir": str(experiment.folder),
        **{f"{what}_sha256": digest for what, digest in digests.items()},
        "config_sha256": config_file.digest(experiment.settings),
        "leftover_rows": population.leftover_rows(workload.population, len(workload.data.train_labels)),
        "environment": environment(),
        "finished": False,
    }


def digests_of(scenario: Scenario) -> dict[str, str]:
    """Return the hashes of the data, and of who owns which rows and devices."""
    workload = scenario.workload
    return {"data": workload.data.digest, "partition": population.digest(workload.population)}


def write_budgets(solver: BudgetSolver | None, folder: Place) -> Place:
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


def follow(reports: Iterator[RoundReport], log: RoundLog, rounds: int) -> None:
    """Show each round as it arrives; let those be logged that a checkpoint covers."""
    with ProgressDisplay(rounds) as display:
        for report in reports:
            if report.is_saved:
                log.cover(report.round)
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
    """Write the final model, the tables of rounds and clients, and at the end the summary."""
    folder, workload = experiment.folder, experiment.scenario.workload
    params = methods.served(experiment.scenario.method, workload.plan, state.params, state.memory)
    checkpoint.save_params(params, folder / "model.safetensors")
    keep_records(folder)
    draw_partition(experiment)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))


def keep_records(folder: Place) -> None:
    """Merge the records of rounds and of their clients."""
    records.merge_parts(folder / "rounds", folder / "rounds.parquet", together=True)
    records.merge_parts(folder / "clients", folder / "clients.parquet")


def draw_partition(experiment: Experiment) -> None:
    """Draw who owns which classes; at the end, since importing Matplotlib would delay round 1."""
    from raysim.data import figure

    settings, workload = experiment.settings, experiment.scenario.workload
    title = f"{settings.data.name} dealt by {settings.data.partition.name}, seed {settings.split_seed}"
    owned = (workload.population.train, workload.population.heldout)
    (experiment.folder / "partition.png").write(
        lambda partial: figure.draw(partial, workload.data.train_labels, owned, workload.data.num_classes, title)
    )


def tell(experiment: Experiment, log: RoundLog) -> None:
    """Tell MLflow of what the folder holds; the run is finished when that is done.

    Raises:
        TrackingLostError: If MLflow does not listen; `raysim resume` makes up for it.
    """
    folder, until = experiment.folder, time.monotonic() + PATIENCE_S
    try:
        log.close(PATIENCE_S)
        patiently(lambda: _upload(experiment), until)
    except TrackingLostError as error:
        raise TrackingLostError(
            f"MLflow could not be told of all that happened ({error}); all files are in {folder}, "
            f"`raysim resume {folder}` tells it what is missing"
        ) from None
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"finished": True}, indent=2))


def _upload(experiment: Experiment) -> None:
    folder, tracker = experiment.folder, experiment.tracker
    for name in ARTIFACTS:
        tracker.artifact(folder / name)
    if not tracker.has_model:
        say("logging the final model to MLflow")
        workload = experiment.scenario.workload
        with (folder / "model.safetensors").fetched() as path:
            submodel.load_params(workload.model, load_file(path))
        example, _ = workload.data.test_rows(np.arange(2))
        tracker.model(workload.model, example)
    tracker.end("FINISHED")


def patiently(call: Callable[[], object], until: float) -> None:
    """Repeat a call that fails, with longer and longer pauses.

    Args:
        call: What may be done again.
        until: `time.monotonic()` from which on it is not.

    Raises:
        TrackingLostError: If it has not worked by then.
    """
    pause_s = 0.5
    while True:
        try:
            call()
            return
        except Exception as error:
            if time.monotonic() + pause_s > until:
                raise TrackingLostError(reason_of(error)) from error
        time.sleep(pause_s)
        pause_s *= 2


def leave(experiment: Experiment, log: RoundLog | None, error: BaseException) -> None:
    """Tell MLflow how an unfinished run ended, as far as it listens and time allows."""
    tracker = experiment.tracker
    if not tracker.run_id or isinstance(error, TrackingLostError):
        return
    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    steps: list[Callable[[], object]] = [] if log is None else [lambda: log.close(FAREWELL_S[status] / 2)]
    steps += [] if status == "KILLED" else [lambda: tracker.note("failure", str(error))]
    steps += [lambda: tracker.end(status), lambda: _tell_records(experiment)]

    def farewell() -> None:
        for step in steps:
            with suppress(Exception):
                step()

    last = Thread(target=farewell, daemon=True)
    last.start()
    last.join(FAREWELL_S[status])


def _tell_records(experiment: Experiment) -> None:
    keep_records(experiment.folder)
    for table in RECORDS:
        experiment.tracker.artifact(experiment.folder / f"{table}.parquet")
