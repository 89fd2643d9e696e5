"""What Ctrl-C and SIGTERM do to a command, and the codes commands leave with."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

BAD_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143

ANSWER_S = 5.0
"""How long a run that ends waits at most for the answer of who was asked to end it."""

_terminated: list[bool] = []


def listen() -> None:
    """Let SIGTERM interrupt this process as Ctrl-C does, once."""
    signal.signal(signal.SIGTERM, _terminate)
    _terminated.clear()


def code_of_interrupt() -> int:
    """Return the exit code of a command that was interrupted: 143 if it was by SIGTERM, else 130."""
    return TERMINATED if _terminated else INTERRUPTED


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _terminated.append(True)  # the exception alone does not tell: Ray raises another one in its place
    raise KeyboardInterrupt


class StopRequest:
    """Which round is the last of a run that is asked to stop early; asked in one thread, looked at in another."""

    def __init__(self) -> None:
        self._ended, self._is_asked, self._lock = 0, False, threading.Lock()

    def begin(self, ended: int) -> None:
        """Take down which round has ended before the first one begins."""
        with self._lock:
            self._ended = ended

    def ask(self) -> int:
        """Let the round in progress be the last, and return which one that is."""
        with self._lock:
            self._is_asked = True
            return self._ended + 1

    def is_reached(self, round: int) -> bool:
        """Whether a round that has ended is the last; if not, the one after it is in progress from here on."""
        with self._lock:
            self._ended = round
            return self._is_asked


class FirstInterrupt:
    """Lets the first Ctrl-C ask for an end, while the context lasts; the second one interrupts at once.

    What is asked happens in a thread of its own: a signal may come in the middle of anything. Where Ctrl-C does
    something else already, or nothing, as in the background, that stays.
    """

    def __init__(self, ask: Callable[[], object]) -> None:
        self.has_come = False
        self._ask = ask
        self._woken, self._is_over = threading.Event(), False
        self._asking: threading.Thread | None = None

    def __enter__(self) -> "FirstInterrupt":
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._asking = threading.Thread(target=self._wait, name="raysim-first-interrupt", daemon=True)
            self._asking.start()
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._asking is None:
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._is_over = not self.has_come
        self._woken.set()
        self._asking.join(ANSWER_S)

    def _interrupt(self, *_: Any) -> None:
        if self.has_come:
            raise KeyboardInterrupt
        self.has_come = True
        self._woken.set()

    def _wait(self) -> None:
        self._woken.wait()
        if not self._is_over:
            self._ask()
