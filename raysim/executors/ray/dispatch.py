"""Send calls to client actors, yield their results as they arrive, and do what the failure policy decides."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from raysim.core.log import relay
from raysim.executors.ray.calls import Call
from raysim.executors.ray.failure_policy import (
    POLICY,
    Activity,
    Attempt,
    Failure,
    FailurePolicy,
    Kind,
    Raise,
    Retry,
    Split,
    decide,
)
from raysim.executors.ray.failures import failure_of
from raysim.executors.ray.pool import ActorPool, PendingCall, PooledActor

AHEAD = 2
"""Largest number of calls that an actor has, one of them waiting, so that it never waits for the driver."""


class Dispatch:
    """One batch of calls; iterate over it for the index and the value of each result."""

    def __init__(self, pool: ActorPool, calls: Sequence[Call], round: int, policy: FailurePolicy = POLICY) -> None:
        self._pool, self._round, self._policy = pool, round, policy
        self._queue = deque(calls)
        self._lost_at: float | None = None
        self._lost_at_start = 0
        self.incidents: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield results as they arrive.

        Raises:
            RunFailedError: If the failure policy ends the run.
        """
        while self._queue or self._is_busy:
            self._send()
            awaited = {actor.awaited: actor for actor in self._pool.actors if actor.awaited is not None}
            answered = ray.wait(list(awaited), num_returns=1, timeout=self._timeout_s())[0]
            if not answered:
                self._check_time()
            for reference in answered:
                yield from self._receive(awaited[reference])

    @property
    def _is_busy(self) -> bool:
        return any(actor.sent for actor in self._pool.actors)

    def _send(self) -> None:
        """Give every actor that is ready a call, then each a second one while there are more."""
        ready = [actor for actor in self._pool.actors if actor.is_ready]
        for depth in range(1, AHEAD + 1 if len(ready) == len(self._pool.actors) else 2):
            for actor in sorted(ready, key=lambda actor: actor.load):
                if len(actor.sent) < depth and (call := self._next_for(actor)) is not None:
                    actor.sent.append(PendingCall(call, call.send(actor.handle), time.monotonic()))

    def _next_for(self, actor: PooledActor) -> Call | None:
        config = self._pool.config
        if config.at_once is not None and sum(len(each.sent) for each in self._pool.actors) >= config.at_once:
            return None
        for position, call in enumerate(self._queue):
            if not (config.own_clients and call.clients) or call.clients[0] == actor.index:
                del self._queue[position]
                return call
        return None

    def _receive(self, actor: PooledActor) -> Iterator[tuple[int, Any]]:
        try:
            value, remarks = ray.get(actor.awaited)
        except ray.exceptions.RayError as error:
            self._recover(actor, failure_of(error, self._round))
            return
        relay(remarks)
        if actor.is_ready:
            yield actor.finish().index, value
        else:
            actor.preparing = None

    def _recover(self, actor: PooledActor, failure: Failure) -> None:
        """Replace an actor and repeat its call, whole or split, unless the failure ends the run."""
        calls = [pending.call for pending in actor.sent]
        if calls:
            calls[:1] = self._repeats(calls[0], failure)
        else:
            num_actors = len(self._pool.actors)
            self._decide(failure, Attempt(Activity.START, losses=self._lost_at_start, num_actors=num_actors))
            self._lost_at_start += 1
        self._pool.replace(actor)
        self._lost_at = time.monotonic()
        self._queue.extendleft(reversed(calls))

    def _repeats(self, call: Call, failure: Failure) -> list[Call]:
        decision = self._decide(failure, call.attempt(self._pool.config.client_timeout_s))
        again = call.after(failure.kind)
        return again.split() if isinstance(decision, Split) else [again]

    def _decide(self, failure: Failure, attempt: Attempt) -> Retry | Split:
        decision = decide(failure, attempt, self._policy)
        if isinstance(decision, Raise):
            raise decision.error from None
        self.incidents.append(decision.incident)
        return decision

    def _check_time(self) -> None:
        """Recover from calls that are late; end the run if no actor has started in time."""
        now = time.monotonic()
        for actor in list(self._pool.actors):
            deadline = self._deadline(actor)
            if deadline is not None and now >= deadline:
                self._recover(actor, Failure(Kind.TIMED_OUT, self._round))
        deadline = self._start_deadline()
        if deadline is not None and now > deadline:
            self._decide(Failure(Kind.NOT_STARTED, self._round), Attempt(Activity.START))

    def _deadline(self, actor: PooledActor) -> float | None:
        """Return when an actor has to have finished its call; None: at any time."""
        limit = self._pool.config.client_timeout_s
        if limit is None or not actor.sent or not actor.sent[0].call.clients:
            return None
        return actor.sent[0].since + limit * len(actor.sent[0].call.clients)

    def _start_deadline(self) -> float | None:
        """Return when an actor has to have started, where all are lost; None: at any time."""
        return None if self._lost_at is None or self._is_busy else self._lost_at + self._policy.start_timeout_s

    def _timeout_s(self) -> float | None:
        """Return how long to wait for the next result; None: for ever."""
        deadlines = [*map(self._deadline, self._pool.actors), self._start_deadline()]
        earliest = min((each for each in deadlines if each is not None), default=None)
        return None if earliest is None else max(0.0, earliest - time.monotonic()) + 0.01
