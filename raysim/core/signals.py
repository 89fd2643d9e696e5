"""End commands on Ctrl-C, SIGTERM and SIGHUP, and name their exit codes."""

import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
TERMINATED, HUNG_UP = 128 + signal.SIGTERM, 128 + signal.SIGHUP

ANSWER_S = 5.0
"""Seconds to wait for the runner to confirm a stop request."""

AGAIN_S = 0.01
"""Seconds after which an interrupt that Python ignored comes again."""

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command at once; a terminal that is closed sends SIGHUP."""

_received: list[int] = []


def interrupt_on_signals() -> None:
    """Let the first SIGTERM or SIGHUP interrupt this process like Ctrl-C; `nohup` keeps its meaning."""
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    _received.clear()
    if not isinstance(sys.unraisablehook, _Again):
        sys.unraisablehook = _Again(sys.unraisablehook)


class _Again:
    """Repeats an interrupt that Python ignores, as it does during a finalizer or the hooks of a fork."""

    def __init__(self, otherwise: Callable[[Any], object]) -> None:
        self.otherwise = otherwise
        self._is_called, self._before = False, dict[int, Any]()

    def __call__(self, ignored: Any) -> None:
        if ignored.exc_type is not KeyboardInterrupt or threading.current_thread() is not threading.main_thread():
            self.otherwise(ignored)
            return
        number, self._is_called = _received[0] if _received else signal.SIGINT, True
        try:
            if signal.getsignal(number) != self._interrupt:
                self._before[number] = signal.signal(number, self._interrupt)
        finally:
            _soon(number)
            self._is_called = False

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        if self._is_called:
            _soon(number)
            return
        signal.signal(number, self._before[number])
        raise KeyboardInterrupt


def _soon(number: int) -> None:
    timer = threading.Timer(AGAIN_S, signal.pthread_kill, [threading.main_thread().ident, number])
    timer.daemon = True
    timer.start()


def no_longer_repeat_interrupts() -> None:
    """Leave an interrupt that Python ignores to Python: at its exit, where each one ends another callback."""
    if isinstance(sys.unraisablehook, _Again):
        sys.unraisablehook = sys.unraisablehook.otherwise


def code_of_interrupt() -> int:
    """Return the exit code of an interrupted command: 143 after SIGTERM, 129 after SIGHUP, else 130."""
    return 128 + _received[0] if _received else INTERRUPTED


def is_ended() -> bool:
    """Whether SIGTERM or SIGHUP has been received."""
    return bool(_received)


def _end(number: int, _frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # one is enough: systemd and ssh send several
    _received.append(number)  # Ray replaces the exception by one of its own
    raise KeyboardInterrupt


def check_terminated() -> None:
    """Interrupt this process if it has received SIGTERM or SIGHUP and a library has dropped the exception.

    Raises:
        KeyboardInterrupt: If the process has received one of them.
    """
    if _received:
        raise KeyboardInterrupt


@contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM although a library installs its own.

    When the context ends, the handler is installed again, and called if a SIGTERM has arrived since: the signal's
    wakeup descriptor shows this even if the exception of the library's handler was ignored. Only the main thread can
    install handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    received, woken = socket.socketpair()
    received.setblocking(False)
    woken.setblocking(False)
    descriptor = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        numbers = _drained(received)
        received.close()
        woken.close()
        if signal.SIGTERM in numbers:
            signal.raise_signal(signal.SIGTERM)


def _drained(received: socket.socket) -> bytes:
    try:
        return received.recv(4096)
    except BlockingIOError:
        return b""


class StopRequest:
    """A request, from another thread, that the round in progress be the last one."""

    def __init__(self) -> None:
        self._ended, self._is_made, self._lock = 0, False, threading.Lock()

    def begin(self, ended: int) -> None:
        """Set the round that ended before the first one of this run."""
        with self._lock:
            self._ended = ended

    def request(self) -> int:
        """Make the request, and return the round in progress."""
        with self._lock:
            self._is_made = True
            return self._ended + 1

    def is_reached(self, round: int) -> bool:
        """Whether a round that has ended is the last one; otherwise the next round is now in progress."""
        with self._lock:
            self._ended = round
            return self._is_made


class FirstInterrupt:
    """Turns the first Ctrl-C into a stop request while the context lasts; the second one interrupts at once.

    The request runs in a thread of its own, since a signal may interrupt any code. If Ctrl-C already does something
    else, or nothing, as in the background, it is left alone.

    Attributes:
        is_interrupted: Whether Ctrl-C was pressed.
    """

    def __init__(self, request: Callable[[], object]) -> None:
        self.is_interrupted = False
        self._request = request
        self._woken, self._is_over = threading.Event(), False
        self._requesting: threading.Thread | None = None

    def __enter__(self) -> "FirstInterrupt":
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._requesting = threading.Thread(target=self._wait, name="raysim-first-interrupt", daemon=True)
            self._requesting.start()
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._requesting is None:
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._is_over = not self.is_interrupted
        self._woken.set()
        self._requesting.join(ANSWER_S)

    def _interrupt(self, *_: Any) -> None:
        if self.is_interrupted:
            raise KeyboardInterrupt
        self.is_interrupted = True
        self._woken.set()

    def _wait(self) -> None:
        self._woken.wait()
        if not self._is_over:
            self._request()
