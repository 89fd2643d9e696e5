"""Ends a call that takes too long, in whatever thread it runs."""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

AGAIN_AFTER_S = 0.5
"""Code that catches everything may swallow an interruption, so it is repeated."""


class _TimeUp(BaseException):
    """Raised inside the call; no ordinary `except` catches it."""


def within(limit_s: float, function: Callable[[], T]) -> T:
    """Return what a function returns, or end it after `limit_s` seconds.

    Unlike a signal this works in any thread; what runs outside the interpreter is ended when it comes back.

    Raises:
        TimeoutError: If the function has not returned in time; its cause's traceback shows where it was.
    """
    clock = _Clock(limit_s, threading.get_ident())
    try:
        try:
            clock.start()
            return function()
        finally:
            clock.stop()
    except _TimeUp as interruption:
        clock.stop_surely()
        raise TimeoutError(f"not done within {limit_s:g} s") from interruption


class _Clock(threading.Thread):
    def __init__(self, limit_s: float, thread: int) -> None:
        super().__init__(name="time limit", daemon=True)
        self._limit_s, self._thread, self._stopped = limit_s, ctypes.c_ulong(thread), threading.Event()
        self._has_struck = False

    def run(self) -> None:
        wait_s = self._limit_s
        while not self._stopped.wait(wait_s):
            self._has_struck = True
            self._strike()
            wait_s = AGAIN_AFTER_S

    def _strike(self) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, ctypes.py_object(_TimeUp))

    def stop(self) -> None:
        """After this no interruption comes, nor is one left pending.

        A pending one is replaced by one that is caught here: CPython has a call that only takes it back, but
        that leaves the interpreter looking for it for ever.
        """
        self._stopped.set()
        self.join()
        if self._has_struck:
            try:
                self._strike()
                while True:
                    pass
            except _TimeUp:
                pass

    def stop_surely(self) -> None:
        """Stop, even when interrupted while stopping."""
        while True:
            try:
                return self.stop()
            except _TimeUp:
                continue
