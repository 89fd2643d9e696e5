"""Capture the lines that an actor logs or prints, which nobody would see, for the process that shows them."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

from raysim.core.errors import RunFailedError
from raysim.core.log import LineHandler, LogLine, info, logger, showing_warnings, terminal

MAX_LINES = 50
"""Different lines that are kept of a round; a layer that prints its inputs would print more."""


class LineCollector:
    """Lines since the last call of `pop`; equal lines about several clients are one."""

    def __init__(self) -> None:
        self._clients: dict[LogLine, set[int]] = {}
        self._left_out = 0

    def add(self, line: LogLine) -> None:
        """Keep a line, or count it where there are too many."""
        about_all = replace(line, clients=())
        if about_all in self._clients or len(self._clients) < MAX_LINES:
            self._clients.setdefault(about_all, set()).update(line.clients)
        else:
            self._left_out += 1

    def pop(self) -> tuple[LogLine, ...]:
        """Return the lines in the order in which each was first logged, and forget them."""
        found = [replace(line, clients=tuple(sorted(clients))) for line, clients in self._clients.items()]
        if self._left_out:
            found.append(LogLine(f"{self._left_out} more lines are left out", found[-1].round))
        self._clients, self._left_out = {}, 0
        return tuple(found)


@contextmanager
def captured() -> Iterator[LineCollector]:
    """Collect what this process logs, prints and warns of, instead of showing it.

    Raises:
        RunFailedError: As it was raised inside, with the lines before it among its details.
    """
    collector = LineCollector()
    handler, printed, complained = _CollectingHandler(collector), _PrintedLines(), _PrintedLines()
    logger.removeHandler(terminal)
    logger.addHandler(handler)
    try:
        with showing_warnings(handler), redirect_stdout(printed), redirect_stderr(complained):
            try:
                yield collector
            finally:
                printed.finish()
                complained.finish()
    except RunFailedError as error:
        before = "".join(f"{line}\n" for line in collector.pop())
        raise RunFailedError(error.round, error.client, error.cause, f"{before}{error.details}") from None
    finally:
        logger.removeHandler(handler)
        logger.addHandler(terminal)


class _CollectingHandler(LineHandler):
    def __init__(self, collector: LineCollector) -> None:
        super().__init__()
        self._collector = collector

    def filter(self, record: logging.LogRecord) -> bool:
        return super().filter(record) and not _is_printed(record)

    def write(self, line: LogLine) -> None:
        self._collector.add(line)


def _is_printed(record: logging.LogRecord) -> bool:
    """Whether a handler of its own logger prints a record to where printed lines are captured."""
    source: logging.Logger | None = logging.getLogger(record.name)
    while source is not None:
        streams = [each.stream for each in source.handlers if isinstance(each, logging.StreamHandler)]
        if any(isinstance(stream, _PrintedLines) for stream in streams):
            return True
        source = source.parent if source.propagate else None
    return False


class _PrintedLines(io.TextIOWrapper):
    """A stream that logs each line that is printed to it."""

    def __init__(self) -> None:
        self._lines = _Lines()
        super().__init__(self._lines, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)

    def finish(self) -> None:
        """Log a last line without an end."""
        if self._lines.unfinished:
            self.write("\n")


class _Lines(io.RawIOBase):
    name = "captured lines"

    def __init__(self) -> None:
        self.unfinished = b""

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        *lines, self.unfinished = (self.unfinished + bytes(content)).split(b"\n")
        for line in filter(None, lines):
            info(line.decode(errors="replace"))
        return len(content)
