"""The loop over the rounds of a run; each is on disk before it is reported."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil

from raysim.core.errors import RunFailedError, reason_of
from raysim.core.log import about
from raysim.core.signals import StopRequest
from raysim.core.tensors import one_thread
from raysim.methods import resolve as methods
from raysim.simulation import checkpoint, records
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import FinalState, RoundReport, ServerState, Start, Storage
from raysim.simulation.transition import initial_state


def run_rounds(
    scenario: Scenario,
    state: ServerState,
    executor: Executor,
    storage: Storage,
    wall_s: float = 0.0,
    last: StopRequest | None = None,
) -> Iterator[tuple[ServerState, RoundReport]]:
    """Run the rounds that are left, and yield state and report of each once it is on disk.

    The last round has a checkpoint, also if the run is stopped early.

    Args:
        scenario: The run.
        state: The server state before the first of these rounds.
        executor: Trains the clients.
        storage: The folder for records and checkpoints.
        wall_s: Measured seconds of the rounds before.
        last: Can stop the run early; None: it cannot be stopped.

    Raises:
        RunFailedError: If a client fails, or a file cannot be written; everything up to the round before is kept.
    """
    started = time.monotonic() - wall_s
    last = last or StopRequest()
    last.begin(state.round)
    while not scenario.is_over(state):
        failed = state.round + 1
        try:
            with about(failed):
                with one_thread():
                    state, report = run_round(scenario, state, executor)
                stops = last.is_reached(state.round)
                is_saved = stops or is_due(scenario, state, storage)
                report = stamped(report, time.monotonic() - started, is_saved)
                with _writing(failed):
                    state = save_round(state, report, storage)
        except RunFailedError as error:  # a stale client names the round it started in
            raise RunFailedError(failed, *error.args[1:]) from None
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise RunFailedError(failed, -1, cause, traceback.format_exc()) from error
        yield state, report
        if stops:
            return


@contextmanager
def _writing(round: int) -> Iterator[None]:
    """Report a file that cannot be written, as on a full disk, without a traceback."""
    try:
        yield
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        raise RunFailedError(round, -1, f"its files cannot be written: {reason_of(error)}{named}") from error


def stamped(report: RoundReport, wall_s: float, is_saved: bool) -> RoundReport:
    """Return the report with the time at which its round ended; it does not change any more."""
    driver_bytes = psutil.Process().memory_info().rss
    return replace(
        report, wall_s=wall_s, timestamp_ms=int(time.time() * 1000), is_saved=is_saved, driver_bytes=driver_bytes
    )


def is_due(scenario: Scenario, state: ServerState, storage: Storage) -> bool:
    """Whether a checkpoint is written after a round."""
    return state.round % storage.every == 0 or scenario.is_over(state)


def save_round(state: ServerState, report: RoundReport, storage: Storage) -> ServerState:
    """Write the records of a round, then the checkpoint that covers them, if it is due; join the records of many.

    Returns:
        The state, which after a checkpoint reads the memory of single clients from disk.
    """
    records.write_parts(report, storage.folder, storage.run)
    if report.is_saved:
        folder = storage.checkpoints
        state = checkpoint.with_clients_on_disk(state, folder)
        checkpoint.save(state, folder, storage.keep, storage.run)
    records.join_parts(storage.folder, report.round)
    return state


def first_state(scenario: Scenario, storage: Storage, start: Start) -> ServerState:
    """Return the state with which a run begins: the new model, or the content of a checkpoint.

    Raises:
        RunFailedError: If the checkpoint cannot be read.
    """
    if start.round == 0:
        return initial_state(scenario)
    try:
        return checkpoint.load(checkpoint.path_of(storage.checkpoints, start.round), storage.run)
    except (OSError, checkpoint.TornCheckpointError) as error:
        cause = f"the checkpoint to resume from cannot be read: {reason_of(error)}"
        raise RunFailedError(start.round + 1, -1, cause) from error


def final_state(scenario: Scenario, state: ServerState) -> FinalState:
    """Return the final state of a run from its last server state.

    The served model depends on the method's memory, so it is made where that memory is: beside the state.
    """
    served = methods.served(scenario.method, scenario.workload.plan, state.params, state.memory)
    table = {} if scenario.method.table is None else scenario.method.table(state.memory)
    return FinalState(state.round, state.totals, state.params, served, table)
