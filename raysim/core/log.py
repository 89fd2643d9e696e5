"""What a process says to whoever started it: line by line, with the round and the clients that a line is about."""

import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from raysim.core.errors import RunFailedError

MOST_LINES = 50
"""Different lines that are kept of a round; a layer that prints its inputs says more."""
NAMED = 3
"""Clients that a line names; of others it tells how many."""


@dataclass(frozen=True, slots=True)
class Remark:
    """A line, and what it is about.

    Attributes:
        text: The line.
        round: Counted from 1; 0 = no round.
        clients: Their ids, ascending; empty = no client.
        is_warning: Whether it is said to those, too, who asked for quiet.
    """

    text: str
    round: int = 0
    clients: tuple[int, ...] = ()
    is_warning: bool = False

    def __str__(self) -> str:
        where = [f"round {self.round}"] if self.round > 0 else []
        where += [_named(self.clients)] if self.clients else []
        return f"{', '.join(where)}: {self.text}" if where else self.text


def _named(clients: Sequence[int]) -> str:
    """Name clients in a few words.

    >>> _named([7]), _named([1, 2]), _named(range(60))
    ('client 7', 'clients 1, 2', 'clients 0, 1, 2 and 57 more')
    """
    first = ", ".join(map(str, clients[:NAMED]))
    more = f" and {len(clients) - NAMED} more" if len(clients) > NAMED else ""
    return f"client{'s' if len(clients) > 1 else ''} {first}{more}"


class Remarks:
    """What is said while others do the talking: each line of a round once, however many clients it is about."""

    def __init__(self) -> None:
        self._clients: dict[Remark, set[int]] = {}
        self._left_out = 0

    def add(self, remark: Remark) -> None:
        """Take down a line."""
        line = replace(remark, clients=())
        if line in self._clients or len(self._clients) < MOST_LINES:
            self._clients.setdefault(line, set()).update(remark.clients)
        else:
            self._left_out += 1

    def taken(self) -> tuple[Remark, ...]:
        """Return the lines so far, in the order of their first time, and forget them."""
        found = [replace(line, clients=tuple(sorted(clients))) for line, clients in self._clients.items()]
        if self._left_out:
            found.append(Remark(f"{self._left_out} more lines are left out", found[-1].round))
        self._clients, self._left_out = {}, 0
        return tuple(found)


@dataclass(slots=True)
class _Listener:
    is_quiet: bool = False
    remarks: Remarks | None = None


_listener = _Listener()
_about: ContextVar[Remark] = ContextVar("about", default=Remark(""))  # noqa: B039  (it is frozen)


def say(text: str) -> None:
    """Write a line to standard error, unless quiet was asked for."""
    tell(replace(_about.get(), text=text))


def warn(text: str) -> None:
    """Write a line to standard error that everybody has to read."""
    tell(replace(_about.get(), text=text, is_warning=True))


def tell(remark: Remark) -> None:
    """Write a remark to standard error, or leave it to those who catch what is said here."""
    if _listener.remarks is not None:
        _listener.remarks.add(remark)
    elif remark.is_warning or not _listener.is_quiet:
        print(remark, file=sys.stderr, flush=True)


def pass_on(remarks: Iterable[Remark]) -> None:
    """Tell what was said elsewhere as something of the round that this thread is in."""
    for remark in remarks:
        tell(replace(remark, round=_about.get().round or remark.round))


def be_quiet(is_quiet: bool) -> None:
    """Say nothing but warnings from now on, or everything again."""
    _listener.is_quiet = is_quiet


def is_quiet() -> bool:
    """Whether only warnings are said."""
    return _listener.is_quiet


@contextmanager
def about(round: int, clients: Iterable[int] = ()) -> Iterator[None]:
    """Name a round, and clients of it, in all that this thread says while the context lasts.

    A round that is named already stays: a client may have started in one before.
    """
    before = _about.set(Remark("", _about.get().round or round, tuple(clients)))
    try:
        yield
    finally:
        _about.reset(before)


@contextmanager
def caught() -> Iterator[Remarks]:
    """Catch what is said, printed, logged and warned of in this process, which nobody looks at.

    Raises:
        RunFailedError: As it was raised inside, with what was said before among its details.
    """
    remarks = _listener.remarks = Remarks()
    printed, complained = _Lines(), _Lines()
    try:
        with listening(), redirect_stdout(printed), redirect_stderr(complained):
            try:
                yield remarks
            finally:
                printed.finish()
                complained.finish()
    except RunFailedError as error:
        said = "".join(f"{remark}\n" for remark in remarks.taken())
        raise RunFailedError(error.round, error.client, error.cause, f"{said}{error.details}") from None
    finally:
        _listener.remarks = None


@contextmanager
def listening() -> Iterator[None]:
    """Let warnings of Python's and of all loggers be said as our own are."""
    listener, before = _Forward(logging.WARNING), warnings.showwarning
    logging.getLogger().addHandler(listener)
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        warnings.showwarning = before
        logging.getLogger().removeHandler(listener)


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if _is_printed(record):
            return
        try:
            warn(f"{record.name}: {logging.Formatter().format(record)}")
        except Exception:
            self.handleError(record)


def _is_printed(record: logging.LogRecord) -> bool:
    """Whether a handler of its logger's own prints a record to where lines are caught."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None:
        streams = [each.stream for each in logger.handlers if isinstance(each, logging.StreamHandler)]
        if any(isinstance(stream, _Lines) for stream in streams):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    text = f"{category.__name__}: {message} ({Path(filename).name}:{lineno})"
    if file is None:
        warn(text)
    else:
        print(text, file=file)


class _Bytes(io.RawIOBase):
    """What is written to a stream's buffer, as text of the stream."""

    def __init__(self, lines: "_Lines") -> None:
        self._lines = lines

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._lines.write(bytes(content).decode(errors="replace"))
        return len(content)


class _Lines(io.TextIOBase):
    """What is printed, as lines that are said."""

    def __init__(self) -> None:
        self._unfinished = ""
        self.buffer = _Bytes(self)

    def finish(self) -> None:
        """Say what has no end of line."""
        if self._unfinished:
            self.write("\n")

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in filter(None, lines):
            say(line)
        return len(text)
