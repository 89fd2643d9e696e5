"""Repeat a call that fails for a while, with longer and longer pauses."""

import time
from collections.abc import Callable
from math import inf
from typing import TypeVar

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""The pause after the first failure, doubled after each further one, and the longest pause."""

Value = TypeVar("Value")


def pause_s(num_failures: int) -> float:
    """Return the seconds to wait after a number of failures in a row.

    >>> [pause_s(failures) for failures in (1, 2, 3, 4, 5, 6, 7)]
    [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    """
    return min(FIRST_PAUSE_S * 2.0 ** (num_failures - 1), LONGEST_PAUSE_S)


def retry(
    call: Callable[[], Value], errors: type[Exception] | tuple[type[Exception], ...], patience_s: float
) -> Value:
    """Repeat a call until it works; return its result.

    Args:
        call: Can be repeated without harm.
        errors: The errors after which it is repeated; all others are raised at once.
        patience_s: Seconds after the first failure from which on it is not repeated.

    Raises:
        Exception: The last of these errors, if the call has not worked by then.
    """
    failures, until = 0, inf
    while True:
        try:
            return call()
        except errors:
            now, failures = time.monotonic(), failures + 1
            until = min(until, now + patience_s)
            if now + pause_s(failures) > until:
                raise
        time.sleep(pause_s(failures))
