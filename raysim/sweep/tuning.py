"""Runs trials on Ray Tune: who is started when and where, and who is given up."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune import Callback, PlacementGroupFactory
from ray.tune.schedulers import ASHAScheduler

from raysim import places
from raysim.actors.connection import connect, let_modules_travel
from raysim.actors.runner import RayRunner
from raysim.config import ExperimentSettings
from raysim.errors import RunFailedError, SettingError
from raysim.experiment import Runner
from raysim.simulation import InProcessRunner
from raysim.sweep import trial as trials
from raysim.sweep.journal import FAILED, FINISHED, STOPPED, Entry
from raysim.sweep.plan import HalvingSettings, Sweep

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_WARN_THRESHOLD_S": "60", "RAY_AIR_NEW_OUTPUT": "0",
}  # fmt: skip
"""Keeps Tune from writing logs of its own, from printing, and from changing the working directory of trials."""
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
    halving = None if sweep.settings.asha is None else _halving(sweep, before)
    known = {entry.trial: entry.round for entry in before}
    train = tune.with_parameters(_train, sweep=sweep, folder=str(folder), known=known)
    scratch = folder / SCRATCH
    with _signals_kept():
        tuner = tune.Tuner(
            tune.with_resources(train, _resources(sweep)),
            param_space={"place": tune.grid_search(list(places_left))},
            tune_config=tune.TuneConfig(
                scheduler=halving, max_concurrent_trials=sweep.settings.concurrent,
                trial_dirname_creator=_folder_name, reuse_actors=sweep.base.executor.kind == "in-process",
            ),
            run_config=tune.RunConfig(
                name="trials", storage_path=str(scratch), verbose=0, callbacks=[_Telling(sweep, listener)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _folder_name(tuned: Any) -> str:
    return f"trial-{tuned.config['place']}"


def _train(config: Mapping[str, Any], sweep: Sweep, folder: str, known: Mapping[int, int]) -> None:
    """Play a trial in the process that Tune has started for it."""
    trial = sweep.trials[config["place"]]
    runs = [
        (settings, places.at(folder) / "trials" / trial.name / f"seed-{settings.seed}", _runner(settings))
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


def _resources(sweep: Sweep) -> Any:
    """Return what a trial takes: a CPU; or none, and one for each actor of its runs, all in one placement group."""
    executor = sweep.base.executor
    if executor.kind == "in-process":
        return {"cpu": 1, "gpu": 1} if executor.device == "cuda" else {"cpu": 1}
    bundles: list[dict[str, int | float]] = [{}]
    bundles += [{"CPU": 1} for _ in range(sweep.num_cpus)]
    return PlacementGroupFactory(bundles, strategy="PACK")


class Halving(ASHAScheduler):
    """ASHA that knows trials by their place in the sweep, so that one that goes on is the one it was."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take up a trial."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial goes on."""
        return str(super().on_trial_result(tune_controller, _named(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget a trial that is over; what it reached on its way stays."""
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that was given up before it started."""
        super().on_trial_remove(tune_controller, _named(trial))


class _Named:
    """All that ASHA asks of a trial: its name."""

    def __init__(self, place: int) -> None:
        self.trial_id = f"trial {place}"


def _named(trial: Any) -> Any:
    return _Named(trial.config["place"])


class _Earlier:
    """A trial of an earlier run of the sweep."""

    def __init__(self, place: int) -> None:
        self.config = {"place": place}


def _halving(sweep: Sweep, before: Sequence[Entry]) -> Halving:
    """Return ASHA as it stood: it is told again what came in before."""
    asked = sweep.settings.asha or HalvingSettings(grace_rounds=sweep.base.rounds)
    halving = Halving(
        time_attr="round", metric="value", mode=sweep.settings.mode, max_t=sweep.base.rounds + 1,
        grace_period=asked.grace_rounds, reduction_factor=asked.reduction_factor,
    )  # fmt: skip
    seen: set[int] = set()
    for entry in before:
        trial = _Earlier(entry.trial)
        if entry.trial not in seen:
            halving.on_trial_add(None, trial)
        seen.add(entry.trial)
        halving.on_trial_result(None, trial, {"round": entry.round, "value": entry.value})
    return halving


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
def _signals_kept() -> Iterator[None]:
    """Give signals back to whom they belonged: Tune listens to them, and does not let go."""
    names = (signal.SIGINT, signal.SIGUSR1)
    is_main = threading.current_thread() is threading.main_thread()
    before = {name: signal.getsignal(name) for name in names} if is_main else {}
    try:
        yield
    finally:
        for name, found in before.items():
            signal.signal(name, found)


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
            connect(max(len(os.sched_getaffinity(0)), sweep.num_cpus), address)
        cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
        if sweep.num_cpus > cpus:
            raise SettingError(
                f"executor.num_actors={sweep.base.executor.num_actors} and {len(sweep.settings.seeds)} seeds take "
                f"{sweep.num_cpus} CPUs, more than the cluster's {cpus}; allowed: as many as it has"
            )
        yield
    finally:
        if owns_ray and ray.is_initialized():
            own: Any = ray._private.worker._global_node
            session = own.get_session_dir_path()
            shutil.rmtree(Path(session) / "artifacts", ignore_errors=True)  # Tune's, beside Ray's own files
            ray.shutdown()
