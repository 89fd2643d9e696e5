"""Run trials on Ray Tune, which starts them where there is room and stops poor ones early."""

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
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from raysim.executors.ray.cluster import connect, pickle_users_modules
from raysim.executors.ray.pool_config import check_gpus
from raysim.executors.ray.runner import RayRunner
from raysim.simulation.scenario import Runner

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Keeps Tune from writing its own logs, from printing, from changing the working directory of trials, and from
handling Ctrl-C."""
SCRATCH = ".tune"
"""A folder in the sweep's folder for the files of Tune; it is never read, and deleted at the end."""


class Listener(Protocol):
    """Receives the results of trials in the process that started the sweep."""

    def started(self, trial: int) -> None:
        """Receive the index of a trial that has been started."""
        ...

    def result(self, entry: Entry) -> None:
        """Receive a result of a trial."""
        ...

    def ended(self, entry: Entry, details: str) -> None:
        """Receive the end of a trial; details are the traceback of an unexpected failure."""
        ...


def run(sweep: Sweep, folder: Path, before: Sequence[Entry], left: Sequence[int], listener: Listener) -> None:
    """Run the trials that are left, and return when all are over or the sweep was interrupted.

    Args:
        sweep: The sweep.
        folder: Its folder, on a file system that all machines of the cluster have under this path.
        before: The results of this sweep before it was interrupted, in the order in which they arrived.
        left: The indices of the trials to run, in the order in which they are started.
        listener: Receives their results.

    Raises:
        SettingError: If the cluster has no room for a trial.
    """
    pickle_users_modules()
    halving = None if sweep.settings.asha is None else ResumableASHA(sweep, sweep.settings.asha, before, left)
    known = {entry.trial: entry.round for entry in before}
    train = tune.with_parameters(_train, sweep=sweep, folder=str(folder), known=known)
    scratch = folder / SCRATCH
    resumed_first = sorted(left, key=lambda trial: trial not in known)
    tuner = tune.Tuner(
        tune.with_resources(train, resources_of(sweep)),
        param_space={"trial": tune.grid_search(resumed_first)},
        tune_config=tune.TuneConfig(
            scheduler=halving,
            max_concurrent_trials=sweep.settings.concurrent,
            reuse_actors=sweep.base.executor.kind == "in-process",
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[_Forwarding(sweep, listener)],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    before_tune = signal.getsignal(signal.SIGUSR1)
    try:
        with FirstInterrupt(_stop):
            tuner.fit()
    finally:
        signal.signal(signal.SIGUSR1, before_tune)  # Tune does not restore it
        shutil.rmtree(scratch, ignore_errors=True)


def _stop() -> None:
    """Let Tune end in order, which it does at SIGUSR1; before it handles that signal, end at once."""
    warning("stopping: all results so far are kept; Ctrl-C again stops at once")
    is_handled = callable(signal.getsignal(signal.SIGUSR1))
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1 if is_handled else signal.SIGINT)


def _train(config: Mapping[str, Any], sweep: Sweep, folder: str, known: Mapping[int, int]) -> None:
    """Execute a trial in the process that Tune has started for it."""
    trial = sweep.trials[config["trial"]]
    runs = [(run, storage_path(trial.folder_of(run, Path(folder))), _runner(run)) for run in trial.runs]
    for result in trials.results(runs, sweep.settings.metric, known.get(trial.index, 0)):
        tune.report({"round": result.round, "value": result.value, "primary": result.primary})


def _runner(settings: ExperimentSettings) -> Runner:
    executor = settings.executor
    if executor.kind == "ray":
        return RayRunner(
            executor.num_actors, None, settings.population.clients, executor.client_timeout_s, on_this_machine=False
        )
    return InProcessRunner(executor.device)


def resources_of(sweep: Sweep) -> Any:
    """Return the resources of a trial: one CPU; or a placement group with one CPU for each actor of its runs."""
    executor = sweep.base.executor
    if executor.kind == "in-process":
        return {"cpu": 1, "gpu": 1} if executor.device == "cuda" else {"cpu": 1}
    bundles: list[dict[str, int | float]] = [{}]
    bundles += [{"CPU": 1} for _ in range(sweep.num_cpus)]
    return PlacementGroupFactory(bundles, strategy="PACK")


class ResumableASHA(ASHAScheduler):
    """ASHA that continues after an interruption: it starts with the results that trials had before."""

    def __init__(self, sweep: Sweep, settings: HalvingSettings, before: Sequence[Entry], left: Sequence[int]) -> None:
        """Count the results of trials that are over; those of others count when Tune adds the trial."""
        super().__init__(
            time_attr="round",
            metric="value",
            mode=sweep.mode,
            max_t=sweep.base.rounds + 1,
            grace_period=settings.grace_rounds,
            reduction_factor=settings.reduction_factor,
        )
        self._before = before
        for index in {entry.trial for entry in before} - set(left):
            self.on_trial_add(None, SimpleNamespace(trial_id=f"earlier {index}", config={"trial": index}))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial with the results that it had before."""
        super().on_trial_add(tune_controller, trial)
        for entry in self._before:
            if entry.trial == trial.config["trial"]:
                self.on_trial_result(tune_controller, trial, {"round": entry.round, "value": entry.value})


class _Forwarding(Callback):
    """Forwards Tune's events to a listener; Tune pickles it when it starts, and never uses what it pickled."""

    def __init__(self, sweep: Sweep, listener: Listener) -> None:
        self._sweep, self._listener = sweep, listener
        self._stopped: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Forward the start of a trial."""
        self._listener.started(trial.config["trial"])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Forward a result; it has `done` if ASHA stops the trial."""
        index = trial.config["trial"]
        if result.get("done") and result["round"] < self._sweep.base.rounds:
            self._stopped.add(index)
        self._listener.result(Entry(index, result["round"], float(result["value"]), float(result["primary"])))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Forward the end of a trial."""
        index = trial.config["trial"]
        self._listener.ended(Entry(index, ended=STOPPED if index in self._stopped else FINISHED), "")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Forward the failure of a trial."""
        failure, details = _failure_of(trial)
        self._listener.ended(Entry(trial.config["trial"], ended=FAILED, failure=failure), details)


def _failure_of(trial: Any) -> tuple[str, str]:
    """Return why a trial failed, in one sentence, and the traceback of an unexpected failure."""
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
    """Connect to the sweep's Ray cluster, or start a local Ray that stops with the context.

    Raises:
        SettingError: If the cluster cannot be reached, or is too small for a trial.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for noisy in ("ray.tune", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    address = sweep.settings.address or os.environ.get("RAY_ADDRESS")
    owns_ray, session = not ray.is_initialized(), dict[str, Any]()
    try:
        if owns_ray:
            info(f"joining Ray at {address}" if address else "starting Ray")
            session = connect(max(len(os.sched_getaffinity(0)), sweep.num_cpus), address)
        info(f"trials at a time: {at_once(sweep)}")
        yield
    finally:
        if owns_ray and ray.is_initialized():
            if session and address in (None, "", "local"):  # on a shared cluster other users have files there
                shutil.rmtree(Path(session["session_dir"]) / "artifacts", ignore_errors=True)  # Tune's
            ray.shutdown()


def at_once(sweep: Sweep) -> int:
    """Return how many trials run at a time.

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
        room = min(room, check_gpus())
    return min(room, len(sweep.trials), sweep.settings.concurrent or room)
