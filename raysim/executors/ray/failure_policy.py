"""Decide what to do after a failure on Ray: repeat the work, repeat it client by client, or end the run.

Nothing here imports Ray: `failures` turns Ray's errors into a `Failure`, `dispatch` and `runner` do what is decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from raysim.core.errors import RunFailedError

MOST_NAMED = 8
"""Number of clients that a message names one by one."""


class Kind(StrEnum):
    """The kind of failure."""

    PROCESS_ENDED = "process ended"
    OUT_OF_MEMORY = "out of memory"
    MACHINE_LOST = "machine lost"
    OBJECT_LOST = "object lost"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"
    NOT_STARTED = "not started"
    STORE_FULL = "store full"
    RAISED = "raised"


REASONS = {
    Kind.PROCESS_ENDED: "its process ended",
    Kind.OUT_OF_MEMORY: "its machine ran out of memory",
    Kind.MACHINE_LOST: "its machine was lost",
    Kind.OBJECT_LOST: "what it sent or needed was lost with its machine",
    Kind.UNREACHABLE: "it cannot be reached",
}
"""Losses, and how messages explain them: an actor is gone, and another one may succeed."""

STORE_IS_FULL = (
    "Ray's object store is full and cannot move anything to disk; start Ray with more object_store_memory, or free "
    "space where it spills to (its temporary folder)"
)


class Activity(StrEnum):
    """The work of an actor; the first three are methods of a client actor."""

    TRAIN = "train"
    SCORE = "score"
    ESTIMATE = "estimate_statistics"
    START = "start"
    ROUNDS = "rounds"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure, as Ray or the run's own code reports it.

    Attributes:
        kind: The kind of failure.
        round: The round it ends if nothing is repeated, counted from 1; 0: none.
        client: The client whose code raised an error; -1: not known, or no single one.
        cause: The error, in one sentence.
        details: The traceback of an unexpected error, else empty.
    """

    kind: Kind
    round: int = 0
    client: int = -1
    cause: str = ""
    details: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The work that failed, and how often it had failed before.

    Attributes:
        work: The work of the actor.
        clients: Ids of the clients it trained.
        losses: Number of earlier losses: of this call or a larger one it was part of; of any client actor before its
            first call; of the driver actor.
        timeouts: Number of earlier times it did not finish in time.
        timeout_s: Real seconds that each client may take.
        num_actors: Number of client actors, all of which may be lost once before their first call.
        num_rounds: Number of rounds of the run.
    """

    work: Activity
    clients: tuple[int, ...] = ()
    losses: int = 0
    timeouts: int = 0
    timeout_s: float = 0.0
    num_actors: int = 0
    num_rounds: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """Repeat the work as it was; `incident` is the sentence that reports it."""

    incident: str


@dataclass(frozen=True, slots=True)
class Split:
    """Repeat the work client by client, pack by pack where clients train together."""

    incident: str


@dataclass(frozen=True, slots=True)
class Raise:
    """End the run; the fields are those of `RunFailedError`."""

    round: int
    client: int
    cause: str
    details: str = ""

    @property
    def error(self) -> RunFailedError:
        """The error that ends the run."""
        return RunFailedError(self.round, self.client, self.cause, self.details)


Decision: TypeAlias = Retry | Split | Raise


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """How often work is repeated, and how long to wait.

    Attributes:
        max_losses: Number of times that work is repeated after a loss.
        max_losses_together: Number of these after which the clients of a call are still trained together. Later
            repeats are client by client, so that one that ends its actor is found.
        max_timeouts: Number of times that clients are trained again, one by one, after they did not finish in time.
        start_timeout_s: Real seconds to wait for the first actor after all were lost.
    """

    max_losses: int = 3
    max_losses_together: int = 1
    max_timeouts: int = 1
    start_timeout_s: float = 600.0


POLICY = FailurePolicy()


def decide(failure: Failure, attempt: Attempt, policy: FailurePolicy = POLICY) -> Decision:
    """Return what to do after a failure.

    Work that was lost is repeated a few times, since machines and processes fail by chance. An error of the run's own
    code ends the run: calls are pure, so it would be raised again.
    """
    if failure.kind is Kind.TIMED_OUT:
        return _after_timeout(failure, attempt, policy)
    if failure.kind is Kind.NOT_STARTED:
        cause = f"no client actor could be started within {policy.start_timeout_s:g} s after the last one was lost"
        return Raise(failure.round, -1, cause)
    if failure.kind not in REASONS:
        return fatal(failure)
    if attempt.work is Activity.START:
        return _after_loss_before_first_call(failure, attempt, policy)
    if attempt.work is Activity.ROUNDS:
        return _after_loss_of_driver(failure, attempt, policy)
    return _after_loss_of_call(failure, attempt, policy)


def fatal(failure: Failure) -> Raise:
    """Return the end of the run that a failure means where nothing is repeated."""
    cause = STORE_IS_FULL if failure.kind is Kind.STORE_FULL else failure.cause
    return Raise(failure.round, failure.client, cause, failure.details)


def _after_timeout(failure: Failure, attempt: Attempt, policy: FailurePolicy) -> Decision:
    clients = attempt.clients
    limit = f"executor.client_timeout_s={attempt.timeout_s:g} s per client"
    late = f"{named(clients)} did not answer within {limit}"
    if attempt.timeouts >= policy.max_timeouts:
        often = "twice" if attempt.timeouts == 1 else f"{attempt.timeouts + 1} times"
        return Raise(failure.round, _single(clients), f"{late}, {often}")
    if len(clients) > 1:
        return Split(f"{late}; {_repeated(attempt)}, one by one")
    return Retry(f"{late}; {_repeated(attempt)}")


def _after_loss_of_call(failure: Failure, attempt: Attempt, policy: FailurePolicy) -> Decision:
    losses, reason = attempt.losses + 1, REASONS[failure.kind]
    if losses > policy.max_losses:
        doing = f"while it trained {named(attempt.clients)} alone" if attempt.clients else f"in {attempt.work}"
        cause = f"its client actor was lost {losses} times, the last time {doing}: {reason}"
        return Raise(failure.round, _single(attempt.clients), cause, failure.details)
    incident = f"a client actor was lost ({reason}); {_repeated(attempt)} ({losses} of {policy.max_losses})"
    if losses > policy.max_losses_together and len(attempt.clients) > 1:
        return Split(incident)
    return Retry(incident)


def _after_loss_before_first_call(failure: Failure, attempt: Attempt, policy: FailurePolicy) -> Decision:
    losses, reason = attempt.losses + 1, REASONS[failure.kind]
    if losses > policy.max_losses + attempt.num_actors:
        cause = f"client actors were lost {losses} times before their first call: {reason}"
        return Raise(failure.round, -1, cause, failure.details)
    return Retry(f"a client actor was lost ({reason}) before its first call; another was started")


def _after_loss_of_driver(failure: Failure, attempt: Attempt, policy: FailurePolicy) -> Decision:
    losses, reason = attempt.losses + 1, REASONS[failure.kind]
    if losses > policy.max_losses:
        return Raise(failure.round, -1, f"the driver actor was lost {losses} times: {reason}")
    progress = f"round {failure.round - 1} of {attempt.num_rounds}"
    return Retry(f"the driver actor was lost: resuming after {progress} ({reason})")


def _repeated(attempt: Attempt) -> str:
    """Return what a repeat does, as the end of a sentence."""
    if attempt.work is Activity.SCORE:
        return "rows are scored again"
    if attempt.work is Activity.ESTIMATE:
        return "running statistics are estimated again"
    return f"{named(attempt.clients)} {'is' if len(attempt.clients) == 1 else 'are'} trained again"


def _single(clients: Sequence[int]) -> int:
    return clients[0] if len(clients) == 1 else -1


def named(clients: Sequence[int]) -> str:
    """Name clients, or count them where they are many.

    >>> named([4]), named([5, 1]), named(list(range(12)))
    ('client 4', 'clients 1, 5', '12 clients')
    """
    if len(clients) > MOST_NAMED:
        return f"{len(clients)} clients"
    return f"client{'s' if len(clients) > 1 else ''} {', '.join(map(str, sorted(clients)))}"
