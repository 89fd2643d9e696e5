"""A command on a pseudo-terminal, as a shell starts it: it leads the foreground group, which receives the keys."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CTRL_C = b"\x03"


class Terminal:
    """Runs a command with standard error on a terminal, and standard output in a file."""

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        output: Path,
        env: Mapping[str, str] | None = None,
        rows: int = 30,
        columns: int = 100,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.shown, self._output = "", output
        given = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        with output.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdin=theirs,
                stdout=file,
                stderr=theirs,
                cwd=cwd,
                start_new_session=True,
                env=given | {"TERM": "xterm-256color"} | dict(env or {}),
                preexec_fn=_control_terminal,
            )
        os.close(theirs)

    @property
    def output(self) -> str:
        return self._output.read_text()

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def until(self, pattern: str, timeout_s: float = 240) -> None:
        """Read until something is shown."""
        until = time.monotonic() + timeout_s
        while not re.search(pattern, self.shown):
            if not self._read(until - time.monotonic()):
                raise AssertionError(f"{pattern!r} was never shown:\n{self.shown[-4000:]}")

    def end(self, timeout_s: float = 240) -> int:
        """Read to the end and return the exit code."""
        until = time.monotonic() + timeout_s
        while self._read(until - time.monotonic()):
            pass
        try:
            return self.process.wait(max(1.0, until - time.monotonic()))
        finally:
            self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._ours)

    def _read(self, timeout_s: float) -> bool:
        """Take in what is written; false where nothing more comes."""
        if timeout_s <= 0 or not select.select([self._ours], [], [], timeout_s)[0]:
            return False
        try:
            read = os.read(self._ours, 65536)
        except OSError:  # the other side is closed
            return False
        self.shown += read.decode(errors="replace")
        return bool(read)


def _control_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a shell does; these tests may run in the background
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
