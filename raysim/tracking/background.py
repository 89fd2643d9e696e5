"""Tells MLflow of rounds in the background, from their records and in their order, once a checkpoint covers them."""

import time
from collections.abc import Sequence
from math import inf
from threading import Condition, Thread
from typing import Protocol

from raysim.core.errors import TrackingLostError, reason_of
from raysim.core.log import warn
from raysim.core.retry import pause_s

COLLECT_S = 2.0
"""Seconds between two calls, so that quick rounds share what each costs MLflow besides its metrics."""
LOOK_S = 0.5
"""Seconds between two looks at whether anything goes through, at the end of a run."""


class MetricStream(Protocol):
    """Curves in MLflow that grow by rounds."""

    @property
    def told(self) -> int:
        """The last round that MLflow knows."""
        ...

    @property
    def taken(self) -> int:
        """How many calls MLflow has taken so far."""
        ...

    def tell(self, last: int, hurry: bool) -> None:
        """Tell MLflow of some more rounds, of each all or nothing; raise where it does not take them.

        Args:
            last: The last round that a checkpoint covers, after `told`.
            hurry: Whether the run waits for it.
        """
        ...

    def finish(self) -> None:
        """Tell what only the end of a run decides; may be asked for again after it has raised."""
        ...

    def leave(self, status: str) -> None:
        """Tell how an unfinished run ended."""
        ...


class BackgroundLogger:
    """Has rounds told by a thread of its own; a server that is not there for a while holds nothing up.

    What waits to be told are the records themselves: nothing piles up in memory.
    """

    def __init__(self, curves: Sequence[MetricStream]) -> None:
        """Start the thread."""
        self._curves = curves
        self._covered = self._told
        self._failure: Exception | None = None
        self._failures = 0
        self._is_late = False
        self._closing = self._is_over = self._finished = False
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="raysim-round-log", daemon=True)
        self._thread.start()

    @property
    def _told(self) -> int:
        return min(each.told for each in self._curves)

    @property
    def _taken(self) -> int:
        return sum(each.taken for each in self._curves)

    def cover(self, round: int) -> None:
        """Let the rounds up to this one be told."""
        with self._changed:
            self._covered = max(self._covered, round)
            self._changed.notify_all()

    def close(self, patience_s: float, is_over: bool = False, at_most_s: float = inf) -> None:
        """Tell what is left and stop.

        Args:
            patience_s: How long to wait while nothing goes through; as long as something does, it is waited for.
            is_over: Whether there are no more rounds to come, ever.
            at_most_s: How long to wait in all.

        Raises:
            TrackingLostError: If MLflow did not take it in that time.
        """
        taken, now = self._taken, time.monotonic()
        since, end = now, now + at_most_s
        with self._changed:
            self._closing, self._is_over, self._failures = True, is_over, 0
            self._changed.notify_all()
            while self._is_behind and self._thread.is_alive() and now < min(since + patience_s, end):
                self._changed.wait(min(LOOK_S, since + patience_s - now, end - now))
                now = time.monotonic()
                if self._taken > taken:
                    taken, since = self._taken, now
            left = self._covered - self._told
            is_short = self._is_behind
            self._covered, self._is_over = self._told, False
            self._changed.notify_all()
        if is_short:
            what = f"{left} rounds" if left else "the end of the curves"
            raise TrackingLostError(f"{what} could not be logged: {reason_of(self._failure)}")

    def leave(self, status: str) -> None:
        """Tell how an unfinished run ended."""
        for each in self._curves:
            each.leave(status)

    @property
    def _is_behind(self) -> bool:
        return self._told < self._covered or (self._is_over and not self._finished)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_behind or self._closing)
                if not self._is_behind:
                    return
                self._changed.wait_for(lambda: self._closing, self._pause_s())
                last, hurry, is_over = self._covered, self._closing, self._is_over
            self._log(last, hurry, is_over)

    def _pause_s(self) -> float:
        if not self._failures:
            return 0.0 if self._is_late else COLLECT_S
        return pause_s(self._failures)

    def _log(self, last: int, hurry: bool, is_over: bool) -> None:
        """Tell some rounds, and note how it went."""
        before = [each.told for each in self._curves]
        try:
            for each in self._curves:
                if each.told < last:
                    each.tell(last, hurry)
            if is_over and self._told >= last:
                for each in self._curves:
                    each.finish()
                self._finished = True
        except Exception as error:
            if self._failure is None:
                warn(f"rounds cannot be logged to MLflow for now, the run goes on: {reason_of(error)}")
            self._failure, failed = error, True
        else:
            if self._failure is not None:
                warn("MLflow is back: rounds are logged again, those it has missed included")
            self._failure, failed = None, False
        with self._changed:
            self._is_late = any(told < each.told < last for told, each in zip(before, self._curves, strict=True))
            self._failures = self._failures + 1 if failed else 0
            self._changed.notify_all()
            if failed and self._closing:
                self._changed.wait_for(lambda: not self._is_behind, self._pause_s())
