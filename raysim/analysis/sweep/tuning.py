"""Runs trials on Ray Tune: who is started when and where, and who is given up."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune import Callback, PlacementGroupFactory
from ray.tune.schedulers import ASHAScheduler

from raysim.analysis.sweep import trial as trials
from raysim.analysis.sweep.journal import FAILED, FINISHED, STOPPED, Entry
from raysim.analysis.sweep.plan import HalvingSettings, Sweep
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.log import info, warning
from raysim.core.signals import FirstInterrupt
from raysim.core.storage import local as places
from raysim.executors.in_process import InProcessRunner
from raysim.executors.ray import pool
from raysim.executors.ray.cluster import connect, let_modules_travel
from raysim.executors.ray.runner import RayRunner
from raysim.simulation.scenario import Runner

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_WARN_THRESHOLD_S": "60", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1",
}  # fmt: skip
"""Keeps Tune from writing logs of its own, from printing, from changing the working directory of trials, and from
taking Ctrl-C to itself."""
SCRATCH = ".tune"
"""Folder in the sweep's for what Tune writes down; it is deleted at the end, and nothing is read from it."""


class Listener(Protocol):
    """Is told what becomes of trials, in the process that started them."""

    def started(self, place: int) -> None:
        """A trial has been started."""
        ...

    def result(self, entry: Entry) -> None:
        """A trial has reached something."""
        ...

    def ended(self, entry: Entry, details: str) -> None:
        """A trial is over; details are the traceback of an unexpected failure."""
        ...


def run(sweep: Sweep, folder: Path, before: Sequence[Entry], places_left: Sequence[int], listener: Listener) -> None:
    """Run the trials that are left; returns when all are over, or when the sweep was interrupted.

    Args:
        sweep: The sweep.
        folder: Its folder, on a file system that all machines of the cluster have under this path.
        before: Results of an earlier run of this sweep, in the order in which they came in.
        places_left: Places of the trials to run, in the order in which they are started.
        listener: Is told what becomes of them.

    Raises:
        SettingError: If the cluster has no room for a trial.
    """
    let_modules_travel()
    halving = None if sweep.settings.asha is None else Halving(sweep, sweep.settings.asha, before, places_left)
    known = {entry.trial: entry.round for entry in before}
    train = tune.with_parameters(_train, sweep=sweep, folder=str(folder), known=known)
    scratch = folder / SCRATCH
    tuner = tune.Tuner(
        tune.with_resources(train, resources_of(sweep)),
        param_space={"place": tune.grid_search(sorted(places_left, key=lambda place: place not in known))},
        tune_config=tune.TuneConfig(
            scheduler=halving, max_concurrent_trials=sweep.settings.concurrent,
            reuse_actors=sweep.base.executor.kind == "in-process",
        ),
        run_config=tune.RunConfig(
            name="trials", storage_path=str(scratch), verbose=0, callbacks=[_Telling(sweep, listener)],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )  # fmt: skip
    before_tune = signal.getsignal(signal.SIGUSR1)
    try:
        with FirstInterrupt(_stop):
            tuner.fit()
    finally:
        signal.signal(signal.SIGUSR1, before_tune)  # Tune leaves its own
        shutil.rmtree(scratch, ignore_errors=True)


def _stop() -> None:
    """Let Tune end in order, which it does at SIGUSR1; where it does not listen yet, end at once."""
    warning("stopping: what the trials have done is kept; Ctrl-C again stops at once")
    is_heard = callable(signal.getsignal(signal.SIGUSR1))
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1 if is_heard else signal.SIGINT)


def _train(config: Mapping[str, Any], sweep: Sweep, folder: str, known: Mapping[int, int]) -> None:
    """Play a trial in the process that Tune has started for it."""
    trial = sweep.trials[config["place"]]
    runs = [
        (settings, places.storage_path(folder) / "trials" / trial.name / f"seed-{settings.seed}", _runner(settings))
        for settings in trial.runs
    ]
    for result in trials.results(runs, sweep.settings.metric, known.get(trial.place, 0)):
        tune.report({"round": result.round, "value": result.value, "accuracy": result.accuracy})


def _runner(settings: ExperimentSettings) -> Runner:
    executor = settings.executor
    if executor.kind == "ray":
        return RayRunner(
            executor.num_actors, None, settings.population.clients, executor.client_timeout_s, on_this_node=False
        )
    return InProcessRunner()


def resources_of(sweep: Sweep) -> Any:
    """Return what a trial takes: a CPU; or none, and one for each actor of its runs, all in one placement group."""
    executor = sweep.base.executor
    if executor.kind == "in-process":
        return {"cpu": 1, "gpu": 1} if executor.device == "cuda" else {"cpu": 1}
    bundles: list[dict[str, int | float]] = [{}]
    bundles += [{"CPU": 1} for _ in range(sweep.num_cpus)]
    return PlacementGroupFactory(bundles, strategy="PACK")


class Halving(ASHAScheduler):
    """ASHA that goes on: it knows what trials have reached before, which Tune forgets with its process."""

    def __init__(self, sweep: Sweep, asked: HalvingSettings, before: Sequence[Entry], left: Sequence[int]) -> None:
        """Take up what came in before; of trials that are left it counts when Tune adds them."""
        super().__init__(
            time_attr="round", metric="value", mode=sweep.settings.mode, max_t=sweep.base.rounds + 1,
            grace_period=asked.grace_rounds, reduction_factor=asked.reduction_factor,
        )  # fmt: skip
        self._before = before
        for place in {entry.trial for entry in before} - set(left):
            self.on_trial_add(None, SimpleNamespace(trial_id=f"earlier {place}", config={"place": place}))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take up a trial, with what it has reached before."""
        super().on_trial_add(tune_controller, trial)
        for entry in self._before:
            if entry.trial == trial.config["place"]:
                self.on_trial_result(tune_controller, trial, {"round": entry.round, "value": entry.value})


class _Telling(Callback):
    """Tells a listener what Tune tells; Tune pickles it when it starts, and never uses what it pickled."""

    def __init__(self, sweep: Sweep, listener: Listener) -> None:
        self._sweep, self._listener = sweep, listener
        self._stopped: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tell of a trial that was started."""
        self._listener.started(trial.config["place"])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Tell of a result; `done` is in it where ASHA gives the trial up."""
        place = trial.config["place"]
        if result.get("done") and result["round"] < self._sweep.base.rounds:
            self._stopped.add(place)
        self._listener.result(Entry(place, result["round"], float(result["value"]), float(result["accuracy"])))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tell of a trial that is over."""
        place = trial.config["place"]
        self._listener.ended(Entry(place, ended=STOPPED if place in self._stopped else FINISHED), "")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tell of a trial that failed."""
        failure, details = _failure_of(trial)
        self._listener.ended(Entry(trial.config["place"], ended=FAILED, failure=failure), details)


def _failure_of(trial: Any) -> tuple[str, str]:
    """Return why a trial failed, in one sentence, and the traceback where it is unexpected."""
    if trial.pickled_error_file is None:
        return "its process cannot be started", ""
    error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, RunFailedError):
        return str(cause), cause.details
    if isinstance(cause, SettingError):
        return str(cause), ""
    if isinstance(error, ray.exceptions.RayActorError):
        return f"the process it ran in was lost: {str(error).splitlines()[0]}", ""
    return f"{type(cause).__name__}: {cause}".splitlines()[0], f"{error}\n"


@contextmanager
def started_ray(sweep: Sweep) -> Iterator[None]:
    """Join the sweep's Ray, or start a local one that has room for a trial and stops with the context.

    Raises:
        SettingError: If the cluster cannot be reached, or is too small for a trial.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for noisy in ("ray.tune", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    address = sweep.settings.address or os.environ.get("RAY_ADDRESS")
    owns_ray = not ray.is_initialized()
    try:
        if owns_ray:
            info(f"joining Ray at {address}" if address else "starting Ray")
            connect(max(len(os.sched_getaffinity(0)), sweep.num_cpus), address)
        info(f"trials at a time: {at_once(sweep)}")
        yield
    finally:
        if owns_ray and ray.is_initialized():
            own: Any = ray._private.worker._global_node
            if not address or address == "local":  # in another's Ray there are other people's, too
                shutil.rmtree(Path(own.get_session_dir_path()) / "artifacts", ignore_errors=True)  # Tune's
            ray.shutdown()


def at_once(sweep: Sweep) -> int:
    """Return how many trials the cluster has room for, as far as there are as many.

    Raises:
        SettingError: If it has no room for one.
    """
    executor, seeds = sweep.base.executor, len(sweep.settings.seeds)
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if sweep.num_cpus > cpus:
        raise SettingError(
            f"executor.num_actors={executor.num_actors} and {seeds} seeds take {sweep.num_cpus} CPUs, more than the "
            f"cluster's {cpus}; allowed: as many as it has"
        )
    room = cpus // sweep.num_cpus
    if executor.device == "cuda":
        room = min(room, pool.check_gpus())
    return min(room, len(sweep.trials), sweep.settings.concurrent or room)
