"""What SIGTERM does to a command, and the codes commands leave with."""

import signal
from types import FrameType

BAD_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143

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
