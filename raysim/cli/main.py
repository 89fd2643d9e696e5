"""The command `raysim`: its group of commands, and the exit codes of all of them."""

import atexit
import errno
import os
import sys
import threading
import traceback
from contextlib import suppress

import click

from raysim.cli.calibrate import calibrate, probe
from raysim.cli.compare import compare
from raysim.cli.devices import devices
from raysim.cli.replay import replay
from raysim.cli.report import report
from raysim.cli.run import resume, run
from raysim.cli.schema import schema
from raysim.cli.study import study
from raysim.cli.submit import submit
from raysim.core import signals
from raysim.core.errors import ReportLostError, RunFailedError, SettingError, StoppedError, TrackingLostError
from raysim.core.log import set_quiet, showing_warnings, warning
from raysim.core.signals import BAD_INPUT, FAILED, HUNG_UP, INTERRUPTED, TERMINATED
from raysim.tracking.mlflow_limits import limit_waits

OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of a disk that is full, read-only or broken: nothing that a traceback explains."""
KEPT = {"study": "the results so far are kept, and the same command goes on after them"}
"""The results that a command keeps when it is interrupted, if they are not those of a checkpoint."""
LAST_CHECKPOINT = "rounds that a checkpoint covers are kept, and `raysim resume` continues after them"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raysim")
def cli() -> None:
    """Simulate federated learning on heterogeneous devices with pruned submodels."""


for command in (calibrate, compare, devices, probe, replay, report, resume, run, schema, study, submit):
    cli.add_command(command)


def main(arguments: list[str] | None = None, command: click.Command = cli, kept: str = LAST_CHECKPOINT) -> None:
    """Run a command line and exit with its code: 0, 1 failed, 2 bad input, 129 to 143 a signal.

    Args:
        arguments: The arguments; None: those of this process.
        command: The command they belong to.
        kept: The results that are kept when it is interrupted, as the end of a message.
    """
    given = sys.argv[1:] if arguments is None else arguments
    kept = KEPT.get(given[0], kept) if given and command is cli else kept
    signals.interrupt_on_signals()
    set_quiet(False)
    limit_waits()
    with showing_warnings():
        code = _exit_code(command, arguments, kept)
    signals.no_longer_repeat_interrupts()
    is_ended = code in (TERMINATED, HUNG_UP)
    if is_ended or (code == INTERRUPTED and _are_threads_at_work()):  # Python would wait for all of them
        with suppress(OSError, ValueError, AttributeError):  # the terminal may be gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def command_line(
    arguments: list[str] | None = None, command: click.Command = cli, kept: str = LAST_CHECKPOINT
) -> None:
    """Run a command line as the only purpose of this process: see `main`.

    Python would spend 2 to 4 seconds after the last line on freeing what was imported, hundreds of thousands of
    objects; this ends the process once its threads and what was registered for its exit are done.
    """
    code = FAILED

    def leave() -> None:
        with suppress(OSError, ValueError, AttributeError):  # streams that are closed or missing
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    atexit.register(leave)
    try:
        main(arguments, command, kept)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else FAILED if end.code else 0
        raise
    except KeyboardInterrupt:
        code = signals.code_of_interrupt()
        raise


def _exit_code(command: click.Command, arguments: list[str] | None, kept: str) -> int:
    """Run a command line, report how it failed if it did, and return its exit code."""
    try:
        return int(command.main(args=arguments, standalone_mode=False) or 0)
    except SettingError as error:
        warning(f"raysim: {error}")
        return BAD_INPUT
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except RunFailedError as error:
        warning(f"{error.details}raysim: the run failed: {error}; {kept}")
        return FAILED
    except (ReportLostError, TrackingLostError) as error:
        warning(f"raysim: {error}")
        return FAILED
    except StoppedError as error:
        warning(f"raysim: {error}")
        return signals.code_of_interrupt()
    except (KeyboardInterrupt, click.Abort):
        warning(f"raysim: interrupted; {kept}")
        return signals.code_of_interrupt()
    except Exception as error:
        if isinstance(error, OSError) and signals.is_ended():  # click prints an empty line to a terminal that is gone
            return signals.code_of_interrupt()
        if isinstance(error, OSError) and error.errno in OF_STORAGE:
            named = f"{error.filename!r}: " if error.filename else ""
            warning(f"raysim: {named}{error.strerror}; {kept}")
            return FAILED
        traceback.print_exc()
        warning(f"raysim: unexpected {type(error).__name__}: {error}")
        return FAILED


def _are_threads_at_work() -> bool:
    return any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
