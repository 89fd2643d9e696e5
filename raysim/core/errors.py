"""Errors for users: bad settings (exit code 2) and failed runs (exit code 1)."""

import difflib
import reprlib
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MAX_MESSAGE = 960
"""Longest message about a setting, in characters."""


MAX_NAME = 120
"""Characters of a name that are compared with others, which takes time with the square of the number."""


class SettingError(ValueError):
    """A setting has a value that is not allowed; the message names the setting, the value and what is allowed.

    A message that is longer than `MAX_MESSAGE` loses its middle; characters that do not print are escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(without_middle(printable(message), MAX_MESSAGE))


class UntraceableError(SettingError):
    """A model's channel groups cannot be found; the message gives the reason and, where known, the layer."""


class RunFailedError(RuntimeError):
    """A run stopped before its last round.

    Attributes:
        round: The round that failed, counted from 1; 0: between rounds.
        client: The client that failed; -1: no single client.
        cause: The cause in one sentence.
        details: The traceback of an unexpected exception, else empty.
    """

    def __init__(self, round: int, client: int, cause: str, details: str = "") -> None:
        super().__init__(round, client, cause, details)
        self.round, self.client, self.cause, self.details = round, client, cause, details

    def __str__(self) -> str:
        subject = [f"round {self.round}"] if self.round > 0 else []
        subject += [f"client {self.client}"] if self.client >= 0 else []
        return f"{', '.join(subject)}: {self.cause}" if subject else self.cause


class StoppedError(RuntimeError):
    """A run was stopped on request before its end; the message names the last round."""


class TrackingLostError(RuntimeError):
    """MLflow lacks some of the results; the files of the run are complete.

    Attributes:
        reason: The cause, without advice on how to continue.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class TrackingUnavailableError(SettingError):
    """MLflow cannot be written when a run begins; the message explains how to resume it later.

    Attributes:
        reason: The cause, without advice on how to continue.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class ReportLostError(RuntimeError):
    """The report of a run could not be written; its results are complete, and MLflow has them."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn all that a reader or a validator of what a user gives raises into a refusal.

    Args:
        what: The beginning of the message, before the reason.

    Raises:
        SettingError: If anything was raised within the context.
    """
    try:
        yield
    except SettingError:
        raise
    except RecursionError:
        raise SettingError(f"{what}: it is nested too deeply") from None
    except Exception as error:
        raise SettingError(f"{what}: {kind_and_reason(error)}") from None


def kind_and_reason(error: BaseException) -> str:
    """Return an error's type and, if it has a message, the first line of that, shortened.

    >>> kind_and_reason(KeyError("rows")), kind_and_reason(TimeoutError())
    ("KeyError: 'rows'", 'TimeoutError')
    """
    reason = f": {reason_of(error)}" if str(error).strip() else ""
    return f"{type(error).__name__}{reason}"


def reason_of(error: BaseException | None) -> str:
    """Return the first line of an error's message, shortened: some servers answer with whole pages.

    >>> reason_of(None), reason_of(TimeoutError()), reason_of(OSError("no space"))
    ('no answer in time', 'TimeoutError', 'no space')
    """
    if error is None:
        return "no answer in time"
    text = str(error).strip() or type(error).__name__
    return textwrap.shorten(text.splitlines()[0], 300, placeholder=" ...")


def printable(text: str) -> str:
    r"""Return a text with escapes for characters that do not print, except for ends of lines.

    >>> printable("a\x1b[31m\ud800\n")
    'a\\x1b[31m\\ud800\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def without_middle(text: str, length: int) -> str:
    """Return a text of at most so many characters, of which the middle is left out.

    >>> without_middle("x=12345678901234567890 is not allowed", 25)
    'x=1234 [...] not allowed'
    """
    if len(text) <= length:
        return text
    rest = length - 7
    return f"{text[: rest - rest * 2 // 3]} [...] {text[len(text) - rest * 2 // 3 :].lstrip()}"


def shortened(value: object, length: int = 120) -> str:
    """Return a value as it is written in Python, of at most so many characters.

    >>> shortened("a" * 1000, 20), shortened({"a": 1})
    ("'aaaaaaa...aaaaaaaa'", "{'a': 1}")
    """
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = length
    writer.maxlist = writer.maxtuple = writer.maxdict = 12
    writer.maxlevel = 4
    try:
        return without_middle(writer.repr(value), length)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a very long {type(value).__name__}"


def unknown_name(setting: str, name: str, known: Iterable[str]) -> SettingError:
    """Return the error for a name that a table lacks; it lists the known names, nearest first."""
    return SettingError(f"{setting}={name!r} is unknown; known: {', '.join(nearest_first(name, known))}")


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """Sort the known names by similarity to `name`, most similar first.

    >>> nearest_first("fedvag", ["random", "fedavg"])
    ['fedavg', 'random']
    """
    start = name[:MAX_NAME]
    return sorted(sorted(known), key=lambda other: -difflib.SequenceMatcher(None, start, other).ratio())


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
