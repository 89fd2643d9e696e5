"""Sends calls to client actors, yields what they answer as it comes, and repeats what was lost."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from raysim.core.errors import RunFailedError
from raysim.core.log import relay
from raysim.executors.ray.calls import Call, named
from raysim.executors.ray.cluster import RESTARTS
from raysim.executors.ray.failures import failure_of, is_loss, loss_of
from raysim.executors.ray.pool import ActorPool, PendingCall, PooledActor

AHEAD = 2
"""Calls an actor has at most, one of them waiting, so that it never waits for the driver."""

WHOLE = 1
"""Times a chunk of clients is repeated as a whole; then they are sent one by one, so that one that ends its actor is
found."""

START_S = 600.0
"""Seconds after which actors that were to replace the last ones are taken not to come."""


class Dispatch:
    """One batch of calls on its way; iterate over it for place and answer of each."""

    def __init__(self, cast: ActorPool, calls: Sequence[Call], round: int) -> None:
        self._cast, self._round = cast, round
        self._queue = deque(calls)
        self._lost_at: float | None = None
        self._never_played = 0
        self.incidents: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield answers as they come.

        Raises:
            RunFailedError: If a call raises, or is lost once too often.
        """
        while self._queue or self._is_busy:
            self._send()
            awaited = {member.awaited: member for member in self._cast.members if member.awaited is not None}
            answered = ray.wait(list(awaited), num_returns=1, timeout=self._patience_s())[0]
            if not answered:
                self._end_hanging()
            for reference in answered:
                yield from self._settle(awaited[reference])

    @property
    def _is_busy(self) -> bool:
        return any(member.sent for member in self._cast.members)

    def _send(self) -> None:
        """Give every actor that is ready work, then each a second call while there is more."""
        ready = [member for member in self._cast.members if member.prepared is None]
        for depth in range(1, AHEAD + 1 if len(ready) == len(self._cast.members) else 2):
            for member in sorted(ready, key=_load):
                if len(member.sent) < depth and (call := self._next_for(member)) is not None:
                    member.sent.append(PendingCall(call, call.send(member.handle), time.monotonic()))

    def _next_for(self, member: PooledActor) -> Call | None:
        rules = self._cast.rules
        if rules.at_once is not None and sum(len(each.sent) for each in self._cast.members) >= rules.at_once:
            return None
        for place, call in enumerate(self._queue):
            if not (rules.own_clients and call.clients) or call.clients[0] == member.place:
                del self._queue[place]
                return call
        return None

    def _settle(self, member: PooledActor) -> Iterator[tuple[int, Any]]:
        """Take what an actor has answered; whatever kept it from answering is repeated elsewhere, or raised."""
        try:
            answer = ray.get(member.awaited)
        except ray.exceptions.RayError as error:
            if not is_loss(error):
                raise failure_of(error, self._round) from None
            self._lost(member, error)
            return
        value, remarks = answer
        relay(remarks)
        if member.prepared is not None:
            member.prepared = None
            return
        call = member.sent.popleft().call
        if member.sent:
            member.sent[0].since = time.monotonic()
        yield call.place, value

    def _lost(self, member: PooledActor, error: ray.exceptions.RayError) -> None:
        reason, found = loss_of(error), self._taken_from(member)
        if found is None:
            self._never_played += 1
            if self._never_played > RESTARTS + len(self._cast.members):
                cause = f"client actors were lost {self._never_played} times before they could play: {reason}"
                raise RunFailedError(self._round, -1, cause, f"{error}\n")
            self._note(f"a client actor was lost ({reason}) before it played; another was started")
            return
        losses = found.losses + 1
        if losses > RESTARTS:
            what = f"while it trained {named(found.clients)} alone" if found.clients else f"in {found.method}"
            cause = f"its client actor was lost {losses} times, at last {what}: {reason}"
            raise RunFailedError(self._round, found.client, cause, f"{error}\n")
        self._note(f"a client actor was lost ({reason}); {found.done_again} ({losses} of {RESTARTS})")
        self._repeat([replace(call, losses=losses) for call in (found.apart() if losses > WHOLE else [found])])

    def _end_hanging(self) -> None:
        """Replace actors that have not answered in time; what they did is repeated client by client."""
        now, limit = time.monotonic(), self._cast.rules.client_timeout_s
        for member in list(self._cast.members):
            deadline = self._deadline(member)
            if deadline is None or now < deadline:
                continue
            found = member.sent[0].call
            late = f"{named(found.clients)} did not answer within executor.client_timeout_s={limit:g} s per client"
            if found.hung:
                raise RunFailedError(self._round, found.client, f"{late}, twice")
            self._taken_from(member)
            self._note(f"{late}; {found.done_again}{', one by one' if len(found.clients) > 1 else ''}")
            self._repeat([replace(call, hung=True) for call in found.apart()])
        if self._lost_at is not None and not self._is_busy and now > self._lost_at + START_S:
            cause = f"no client actor could be started within {START_S:g} s after the last one was lost"
            raise RunFailedError(self._round, -1, cause)

    def _taken_from(self, member: PooledActor) -> Call | None:
        """Replace an actor; what was waiting there goes back into the queue, and what it did is returned."""
        calls = [sent.call for sent in member.sent]
        self._cast.replace(member)
        self._lost_at = time.monotonic()
        self._repeat(calls[1:])
        return calls[0] if calls else None

    def _repeat(self, calls: Sequence[Call]) -> None:
        self._queue.extendleft(reversed(calls))

    def _note(self, incident: str) -> None:
        self.incidents.append(incident)

    def _deadline(self, member: PooledActor) -> float | None:
        """Return when the call an actor works on must have been answered."""
        limit = self._cast.rules.client_timeout_s
        if limit is None or not member.sent or not member.sent[0].call.clients:
            return None
        return member.sent[0].since + limit * len(member.sent[0].call.clients)

    def _patience_s(self) -> float | None:
        """Return how long to wait for the next answer; none = for ever."""
        deadlines = [deadline for member in self._cast.members if (deadline := self._deadline(member)) is not None]
        if self._lost_at is not None and not self._is_busy:
            deadlines.append(self._lost_at + START_S)
        return max(0.0, min(deadlines) - time.monotonic()) + 0.01 if deadlines else None


def _load(member: PooledActor) -> float:
    """Return the predicted cost of what an actor has not answered."""
    return sum(float(sent.call.work.costs.sum()) for sent in member.sent if sent.call.clients)
