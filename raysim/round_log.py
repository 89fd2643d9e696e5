"""Logs rounds in the background, from their records and in their order, as soon as a checkpoint covers them."""

import time
from collections.abc import Callable, Sequence
from threading import Condition, Thread

from raysim.errors import TrackingLostError, reason_of
from raysim.messages import say
from raysim.records import Logged

METRICS_PER_CALL = 1000
COLLECT_S = 2.0
"""Seconds between two calls, so that quick rounds share what each costs MLflow besides its metrics."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""Pause after a first call that failed, doubled from call to call, and where that ends."""


class RoundLog:
    """Sends rounds to MLflow from a thread of its own; a server that is not there for a while holds nothing up.

    What waits to be sent are the records themselves: nothing piles up in memory.
    """

    def __init__(
        self, read: Callable[[int], Logged], send: Callable[[Sequence[Logged]], None], logged: int = 0
    ) -> None:  # fmt: skip
        """Start the thread.

        Args:
            read: Returns what MLflow is told of a round.
            send: Tells MLflow of some rounds, all of it or nothing; raises where it cannot.
            logged: The last round that MLflow knows.
        """
        self._read, self._send = read, send
        self._logged = self._covered = logged
        self._failure: Exception | None = None
        self._failures = 0
        self._closing = False
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="raysim-round-log", daemon=True)
        self._thread.start()

    @property
    def logged(self) -> int:
        """The last round that MLflow knows."""
        return self._logged

    def cover(self, round: int) -> None:
        """Let the rounds up to this one be logged."""
        with self._changed:
            self._covered = max(self._covered, round)
            self._changed.notify_all()

    def close(self, patience_s: float) -> None:
        """Log what is left and stop.

        Args:
            patience_s: How long to wait for it at most.

        Raises:
            TrackingLostError: If MLflow did not take it in that time.
        """
        until = time.monotonic() + patience_s
        with self._changed:
            self._closing, self._failures = True, 0
            self._changed.notify_all()
            while self._logged < self._covered and self._thread.is_alive() and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())
            left = self._covered - self._logged
            self._covered = self._logged
            self._changed.notify_all()
        if left:
            raise TrackingLostError(f"{left} rounds could not be logged: {reason_of(self._failure)}")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._logged < self._covered or self._closing)
                if self._logged >= self._covered:
                    return
                self._changed.wait_for(lambda: self._closing, self._pause_s())
                first, last = self._logged + 1, self._covered
            if first <= last:
                self._log(first, last)

    def _pause_s(self) -> float:
        if not self._failures:
            return COLLECT_S
        return min(FIRST_PAUSE_S * 2.0 ** (self._failures - 1), LONGEST_PAUSE_S)

    def _log(self, first: int, last: int) -> None:
        """Log some rounds by one call, and note how it went."""
        try:
            rounds = self._collect(first, last)
            self._send(rounds)
        except Exception as error:
            if self._failure is None:
                say(f"rounds cannot be logged to MLflow for now, the run goes on: {reason_of(error)}")
            self._failure, failed = error, True
        else:
            if self._failure is not None:
                say("MLflow is back: rounds are logged again, those it has missed included")
            self._failure, failed = None, False
        with self._changed:
            self._failures = self._failures + 1 if failed else 0
            if not failed:
                self._logged = rounds[-1].round
            self._changed.notify_all()
            if failed and self._closing:
                self._changed.wait_for(lambda: self._logged >= self._covered, self._pause_s())

    def _collect(self, first: int, last: int) -> list[Logged]:
        """Read as many whole rounds as one call takes, one at least."""
        rounds = [self._read(first)]
        size = len(rounds[0].metrics)
        for round in range(first + 1, last + 1):
            read = self._read(round)
            size += len(read.metrics)
            if size > METRICS_PER_CALL:
                break
            rounds.append(read)
        return rounds
