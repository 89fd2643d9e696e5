"""Log lines to standard error, each with the round and the clients that it is about."""

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from raysim.core.storage import uris

MAX_NAMED = 3
"""Number of clients that a line names; it counts the others."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the log.

    Attributes:
        text: The line without what it is about.
        round: The round it is about, counted from 1; 0: no round.
        clients: Ids of the clients it is about, ascending; empty: no client.
        is_warning: Whether `--quiet` shows it, too.
    """

    text: str
    round: int = 0
    clients: tuple[int, ...] = ()
    is_warning: bool = False

    def __str__(self) -> str:
        subject = [f"round {self.round}"] if self.round > 0 else []
        subject += [_named(self.clients)] if self.clients else []
        return f"{', '.join(subject)}: {self.text}" if subject else self.text


def _named(clients: Sequence[int]) -> str:
    """Name clients in a few words.

    >>> _named([7]), _named([1, 2]), _named(range(60))
    ('client 7', 'clients 1, 2', 'clients 0, 1, 2 and 57 more')
    """
    first = ", ".join(map(str, clients[:MAX_NAMED]))
    more = f" and {len(clients) - MAX_NAMED} more" if len(clients) > MAX_NAMED else ""
    return f"client{'s' if len(clients) > 1 else ''} {first}{more}"


class LineHandler(logging.Handler):
    """Prints our lines, and the warnings of other loggers as lines, to standard error."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is a line of ours, or a warning."""
        return isinstance(record.msg, LogLine) or record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as a line."""
        try:
            line = record.msg
            if not isinstance(line, LogLine):
                line = _warning(f"{record.name}: {logging.Formatter().format(record)}")
            self.write(line)
        except Exception:
            self.handleError(record)

    def write(self, line: LogLine) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)


logger = logging.getLogger("raysim")
logger.setLevel(logging.INFO)
logger.propagate = False
terminal = LineHandler()
logger.addHandler(terminal)
_subject: ContextVar[LogLine] = ContextVar("subject", default=LogLine(""))  # noqa: B039  (it is frozen)


def info(text: str) -> None:
    """Log a line that `--quiet` leaves out."""
    _log(replace(_subject.get(), text=text))


def warning(text: str) -> None:
    """Log a line that everybody has to read."""
    _log(_warning(text))


def relay(lines: Iterable[LogLine]) -> None:
    """Log lines of another process; in a round of this thread's, they are about that round."""
    for line in lines:
        _log(replace(line, round=_subject.get().round or line.round))


def _warning(text: str) -> LogLine:
    return replace(_subject.get(), text=text, is_warning=True)


def _log(line: LogLine) -> None:
    line = replace(line, text=uris.masked_in(line.text))
    logger.disabled = False  # a user's logging.config.dictConfig disables the loggers that it does not name
    logger.log(logging.WARNING if line.is_warning else logging.INFO, line)


def set_quiet(quiet: bool) -> None:
    """Log only warnings from now on, or everything again."""
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def is_quiet() -> bool:
    """Whether only warnings are logged."""
    return logger.level > logging.INFO


@contextmanager
def about(round: int, clients: Iterable[int] = ()) -> Iterator[None]:
    """Let all lines of this thread name a round, and clients of it, while the context lasts.

    Inside another round's context that round stays: a client may have started in it.
    """
    before = _subject.set(LogLine("", _subject.get().round or round, tuple(clients)))
    try:
        yield
    finally:
        _subject.reset(before)


@contextmanager
def showing_warnings(handler: LineHandler = terminal) -> Iterator[None]:
    """Write Python's warnings, and those of all loggers, as lines while the context lasts."""
    before = warnings.showwarning
    logging.getLogger().addHandler(handler)
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        warnings.showwarning = before
        logging.getLogger().removeHandler(handler)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = f"{category.__name__}: {message} ({Path(filename).name}:{lineno})"
    if file is None:
        warning(text)
    else:
        print(text, file=file)
