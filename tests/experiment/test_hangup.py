"""A run whose terminal is closed ends like one that is terminated; under nohup it goes on."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executors.ray.test_runner import ended, run_of, until
from tests.processes import mark, ray_daemons_of
from tests.stores import status_of, store_in


def raysim(hangup: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start raysim with SIGHUP as a terminal leaves it, or ignored, whatever this process does with it."""
    command = ["env", f"--{hangup}-signal=HUP", sys.executable, "-m", "raysim", *arguments]
    pipe, environment = subprocess.PIPE, os.environ | variables
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["in-process", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.long])])
def test_a_hangup_ends_a_run_as_killed(executor: str, tmp_path: Path) -> None:
    store = f"tracking.uri={store_in(tmp_path)}"
    given = run_of(tmp_path / "out", store, "rounds=4000", f"executor.kind={executor}", "executor.num_actors=null")
    process = raysim("default", *given, **mark(tmp_path))
    until(process, "round 3/4000")
    process.send_signal(signal.SIGHUP)
    _, errors = ended(process, 129)
    assert "raysim: interrupted" in errors
    assert "Traceback" not in errors
    assert status_of(tmp_path) == "KILLED"
    assert ray_daemons_of(tmp_path) == []


@pytest.mark.slow
def test_under_nohup_a_run_goes_on(tmp_path: Path) -> None:
    process = raysim("ignore", *run_of(tmp_path / "out", "rounds=4", "tracking.uri=none"))
    until(process, "round 1/4")
    process.send_signal(signal.SIGHUP)
    ended(process, 0)


@pytest.mark.slow
def test_a_terminal_that_is_closed_is_a_hangup_and_printing_to_it_no_error(tmp_path: Path) -> None:
    """The kernel sends the signal to the group in front when the other end of the terminal is closed."""
    given = run_of(tmp_path / "out", f"tracking.uri={store_in(tmp_path)}", "rounds=4000")
    command = ["env", "--default-signal=HUP", sys.executable, "-m", "raysim", *given]
    process, terminal = pty.fork()
    if process == 0:
        os.execvp(command[0], command)
    told = b""
    while b"3/4000" not in told:
        told += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert status_of(tmp_path) == "KILLED"
