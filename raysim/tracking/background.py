"""Log rounds to MLflow from a background thread, in their order, once a checkpoint covers them."""

import time
from collections.abc import Sequence
from math import inf
from threading import Condition, Thread
from typing import Protocol

from raysim.core.errors import TrackingLostError, reason_of
from raysim.core.log import warning
from raysim.core.retry import pause_s

COLLECT_S = 2.0
"""Seconds between two calls, so that quick rounds share the fixed cost of a call."""
CHECK_S = 0.5
"""Seconds between two checks of the progress at the end of a run."""


class MetricStream(Protocol):
    """Metrics in MLflow that grow by rounds."""

    @property
    def last_logged(self) -> int:
        """The last round that MLflow has."""
        ...

    @property
    def num_calls(self) -> int:
        """How many calls MLflow has accepted so far."""
        ...

    def flush(self, last: int, hurry: bool) -> None:
        """Log some of the next rounds, each completely or not at all; raise if MLflow does not accept them.

        Args:
            last: The last round that a checkpoint covers, after `last_logged`.
            hurry: Whether the run waits for it.
        """
        ...

    def finish(self) -> None:
        """Log what only the end of a run decides; can be repeated after it has raised."""
        ...

    def abort(self, status: str) -> None:
        """Log how an unfinished run ended."""
        ...


class BackgroundLogger:
    """Logs rounds to MLflow from a background thread; an unreachable server does not block training.

    Rounds that are not logged yet wait on disk, as records: nothing piles up in memory.
    """

    def __init__(self, streams: Sequence[MetricStream]) -> None:
        """Start the thread."""
        self._streams = streams
        self._covered = self._last_logged
        self._failure: Exception | None = None
        self._failures = 0
        self._is_late = False
        self._closing = self._is_over = self._finished = False
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="raysim-round-log", daemon=True)
        self._thread.start()

    @property
    def _last_logged(self) -> int:
        return min(each.last_logged for each in self._streams)

    @property
    def _num_calls(self) -> int:
        return sum(each.num_calls for each in self._streams)

    def cover(self, round: int) -> None:
        """Allow the rounds up to this one to be logged."""
        with self._changed:
            self._covered = max(self._covered, round)
            self._changed.notify_all()

    def close(self, patience_s: float, is_over: bool = False, at_most_s: float = inf) -> None:
        """Log what is left, and stop.

        Args:
            patience_s: Seconds to wait while MLflow accepts nothing; whatever it accepts starts them again.
            is_over: Whether no more rounds will follow, ever.
            at_most_s: Seconds to wait in all.

        Raises:
            TrackingLostError: If MLflow has not accepted all of it by then.
        """
        num_calls, now = self._num_calls, time.monotonic()
        since, end = now, now + at_most_s
        with self._changed:
            self._closing, self._is_over, self._failures = True, is_over, 0
            self._changed.notify_all()
            while self._is_behind and self._thread.is_alive() and now < min(since + patience_s, end):
                self._changed.wait(min(CHECK_S, since + patience_s - now, end - now))
                now = time.monotonic()
                if self._num_calls > num_calls:
                    num_calls, since = self._num_calls, now
            left = self._covered - self._last_logged
            is_short = self._is_behind
            self._covered, self._is_over = self._last_logged, False
            self._changed.notify_all()
        if is_short:
            what = f"{left} rounds" if left else "the end of the curves"
            raise TrackingLostError(f"{what} could not be logged: {reason_of(self._failure)}")

    def abort(self, status: str) -> None:
        """Log how an unfinished run ended."""
        for each in self._streams:
            each.abort(status)

    @property
    def _is_behind(self) -> bool:
        return self._last_logged < self._covered or (self._is_over and not self._finished)

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
        """Log some rounds, and note whether that worked."""
        before = [each.last_logged for each in self._streams]
        try:
            for each in self._streams:
                if each.last_logged < last:
                    each.flush(last, hurry)
            if is_over and self._last_logged >= last:
                for each in self._streams:
                    each.finish()
                self._finished = True
        except Exception as error:
            if self._failure is None:
                warning(f"rounds cannot be logged to MLflow for now; the run continues: {reason_of(error)}")
            self._failure, failed = error, True
        else:
            if self._failure is not None:
                warning("MLflow is reachable again: rounds are logged, including those that it missed")
            self._failure, failed = None, False
        after = [each.last_logged for each in self._streams]
        with self._changed:
            self._is_late = any(was < now < last for was, now in zip(before, after, strict=True))
            self._failures = self._failures + 1 if failed else 0
            self._changed.notify_all()
            if failed and self._closing:
                self._changed.wait_for(lambda: not self._is_behind, self._pause_s())
