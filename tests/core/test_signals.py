"""SIGTERM and SIGHUP are never lost, also if a library has installed its own handler when the signal arrives."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from raysim.core import signals


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.ENDING}
    signals.interrupt_on_signals()
    yield
    signals.interrupt_on_signals()  # forgets what came
    signals.no_longer_repeat_interrupts()
    for number, handler in before.items():
        signal.signal(number, handler)


def exits(signum, _frame):
    sys.exit(signum)


def swallows(_signum, _frame):
    """What remains of a handler whose exception Python ignores."""


@pytest.mark.parametrize("library", [exits, swallows])
def test_a_sigterm_that_a_library_receives_still_interrupts(library):
    @signals.keep_sigterm_handler()
    def start() -> None:
        signal.signal(signal.SIGTERM, library)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert signals.code_of_interrupt() == signals.TERMINATED


def test_without_a_sigterm_the_handler_is_as_before_and_an_exit_goes_on():
    before, descriptor = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)

    @signals.keep_sigterm_handler()
    def start() -> None:
        signal.signal(signal.SIGTERM, exits)
        sys.exit(3)

    with pytest.raises(SystemExit, match="3"):
        start()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(descriptor) == -1
    signals.check_terminated()


IN_A_FINALIZER = """
import os, signal, sys, time
from raysim.core import signals

class Finalized:
    def __init__(self, depth):
        self.depth = depth

    def __del__(self):
        if self.depth == 0:
            os.kill(os.getpid(), signal.{name})
        else:
            Finalized(self.depth - 1)
            time.sleep(0.05)

signals.interrupt_on_signals()
handler = signal.getsignal(signal.{name})
try:
    Finalized({depth})
    time.sleep(60)
except KeyboardInterrupt:
    if signal.{name} == signal.SIGINT:
        assert signal.getsignal(signal.SIGINT) is handler
    sys.exit(signals.code_of_interrupt())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
@pytest.mark.parametrize("depth", [0, 2])
def test_an_interrupt_during_a_finalizer_comes_again_and_nothing_is_printed(name, code, depth):
    command = [sys.executable, "-c", IN_A_FINALIZER.format(name=name, depth=depth)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_other_errors_of_finalizers_are_shown():
    code = IN_A_FINALIZER.replace("os.kill(os.getpid(), signal.{name})", "1 / 0").replace("time.sleep(60)", "pass")
    command = [sys.executable, "-c", code.format(name="SIGTERM", depth=0)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr


def test_an_interrupt_that_a_library_drops_comes_again():
    with suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signals.check_terminated()


def test_in_another_thread_the_handler_is_left_alone():
    errors = []

    def enter() -> None:
        try:
            with signals.keep_sigterm_handler():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_interrupts_and_names_the_exit_code_and_the_others_are_ignored(sent, code):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), sent)
    for number in signals.ENDING:
        os.kill(os.getpid(), number)
    assert signals.code_of_interrupt() == code


def test_nohup_keeps_its_meaning():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.interrupt_on_signals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.code_of_interrupt() == signals.INTERRUPTED
