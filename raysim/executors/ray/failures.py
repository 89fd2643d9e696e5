"""Classify Ray's errors: an error of the run's own code, or a loss that may be made good by repeating the work."""

from ray import exceptions

from raysim.core.errors import RunFailedError, SettingError
from raysim.executors.ray.failure_policy import Failure, Kind, fatal

LOSSES = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
    exceptions.NodeDiedError,
    exceptions.WorkerCrashedError,
)
"""Errors of processes and machines, which may not happen again."""


def failure_of(error: exceptions.RayError, round: int) -> Failure:
    """Return what an error of Ray means for a round."""
    cause = _cause_of(error)
    if isinstance(cause, RunFailedError):
        return Failure(Kind.RAISED, cause.round, cause.client, cause.cause, cause.details)
    if isinstance(cause, SettingError):
        return Failure(Kind.RAISED, round, cause=str(cause))
    return Failure(_kind_of(cause), round, -1, f"{type(cause).__name__}: {cause}", f"{error}\n")


def run_error_of(error: exceptions.RayError, round: int) -> RunFailedError:
    """Return an error of Ray as the error that ends the run, where nothing is repeated."""
    return fatal(failure_of(error, round)).error


def loss_of(error: exceptions.RayError) -> Kind:
    """Return why an actor or an object was lost."""
    return _loss_of(_cause_of(error))


def _cause_of(error: exceptions.RayError) -> BaseException:
    """Return what was raised in the actor, where it was raised there, else the error itself."""
    cause = getattr(error, "cause", None) if isinstance(error, exceptions.RayTaskError) else None
    return cause if isinstance(cause, BaseException) else error


def _kind_of(cause: BaseException) -> Kind:
    if isinstance(cause, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError):
        return Kind.STORE_FULL
    return _loss_of(cause) if isinstance(cause, LOSSES) else Kind.RAISED


def _loss_of(cause: BaseException) -> Kind:
    if isinstance(cause, exceptions.OutOfMemoryError) or "OutOfMemory" in str(cause):
        return Kind.OUT_OF_MEMORY
    if isinstance(cause, exceptions.NodeDiedError) or "node has died" in str(cause):
        return Kind.MACHINE_LOST
    if isinstance(cause, exceptions.ActorUnavailableError):
        return Kind.UNREACHABLE
    if isinstance(cause, exceptions.ObjectLostError):
        return Kind.OBJECT_LOST
    return Kind.PROCESS_ENDED
