"""Commands that run in this process."""

import signal
from typing import Any

import pytest

from raysim.cli import main as cli
from raysim.core import signals


def left_with(*arguments: object, **more: Any) -> int:
    """Run a command line, and return its exit code; signals are handled as before, which `main` changes.

    Args:
        arguments: Of the command line.
        more: Further arguments of `main`: another `command`, and what it has `kept`.
    """
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    try:
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments], **more)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return int(left.value.code)
