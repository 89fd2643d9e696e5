"""What went wrong in an actor: an error of the run's own, or a loss that is made good by doing it again."""

from ray import exceptions

from raysim.core.errors import RunFailedError, SettingError

STORE_IS_FULL = (
    "Ray's object store is full and cannot move anything to disk; start Ray with more object_store_memory, or free "
    "space where it spills to (its temporary folder)"
)

LOSSES = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
    exceptions.NodeDiedError,
    exceptions.WorkerCrashedError,
)
"""What happens to processes and machines, and may not happen again."""


def cause_of(error: exceptions.RayError) -> BaseException:
    """Return what was raised in the actor, where it was raised there, else the error itself."""
    cause = getattr(error, "cause", None) if isinstance(error, exceptions.RayTaskError) else None
    return cause if isinstance(cause, BaseException) else error


def is_loss(error: exceptions.RayError) -> bool:
    """Whether something was lost that can be done again."""
    return isinstance(cause_of(error), LOSSES)


def loss_of(error: exceptions.RayError) -> str:
    """Return why something was lost, in a few words."""
    cause = cause_of(error)
    if isinstance(cause, exceptions.OutOfMemoryError) or "OutOfMemory" in str(cause):
        return "its machine ran out of memory"
    if isinstance(cause, exceptions.NodeDiedError) or "node has died" in str(cause):
        return "its machine was lost"
    if isinstance(cause, exceptions.ActorUnavailableError):
        return "it cannot be reached"
    if isinstance(cause, exceptions.ObjectLostError):
        return "what it sent or needed was lost with its machine"
    return "its process ended"


def failure_of(error: exceptions.RayError, round: int) -> RunFailedError:
    """Return what failed as the error it was raised as in an actor, or as one that says what Ray could not do."""
    cause = cause_of(error)
    if isinstance(cause, RunFailedError):
        return RunFailedError(*cause.args)
    if isinstance(cause, SettingError):
        return RunFailedError(round, -1, str(cause))
    if isinstance(cause, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError):
        return RunFailedError(round, -1, STORE_IS_FULL, f"{error}\n")
    return RunFailedError(round, -1, f"{type(cause).__name__}: {cause}", f"{error}\n")
