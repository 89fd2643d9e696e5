"""Errors a user meets: bad settings (exit code 2) and failed runs (exit code 1)."""

import difflib
import textwrap
from collections.abc import Iterable


class SettingError(ValueError):
    """A setting has a value that is not allowed; the message names setting, value and what is allowed."""


class UntraceableError(SettingError):
    """A model's channel groups cannot be found; the message names the layer, where one can be told, and why."""


class RunFailedError(RuntimeError):
    """A run stopped before its last round.

    Attributes:
        round: The round that failed, counted from 1; 0 where it failed between rounds.
        client: The client that failed, or -1 where no single client did.
        cause: What went wrong, in one sentence.
        details: The traceback of the cause where it is an unexpected exception, else empty.
    """

    def __init__(self, round: int, client: int, cause: str, details: str = "") -> None:
        super().__init__(round, client, cause, details)
        self.round, self.client, self.cause, self.details = round, client, cause, details

    def __str__(self) -> str:
        where = [f"round {self.round}"] if self.round > 0 else []
        where += [f"client {self.client}"] if self.client >= 0 else []
        return f"{', '.join(where)}: {self.cause}" if where else self.cause


class StoppedError(RuntimeError):
    """A run has stopped, as it was asked to, before all of it was done; the message says how far it has come."""


class TrackingLostError(RuntimeError):
    """MLflow lacks some of the results; the files of the run are complete.

    Attributes:
        reason: What went wrong, without advice on how to go on.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class TrackingUnavailableError(SettingError):
    """MLflow cannot be written when a run begins; the message says how to resume it later.

    Attributes:
        reason: What went wrong, without advice on how to go on.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class ReportLostError(RuntimeError):
    """The report of a run could not be made; its results are complete, and MLflow has them."""


def reason_of(error: BaseException | None) -> str:
    """Return the first line of what went wrong, cut where servers answer with pages.

    >>> reason_of(None), reason_of(TimeoutError()), reason_of(OSError("no space"))
    ('no answer in time', 'TimeoutError', 'no space')
    """
    if error is None:
        return "no answer in time"
    text = str(error).strip() or type(error).__name__
    return textwrap.shorten(text.splitlines()[0], 300, placeholder=" ...")


def unknown_name(setting: str, name: str, known: Iterable[str]) -> SettingError:
    """Return the error for a name that is not in a table, listing the known names, nearest first."""
    return SettingError(f"{setting}={name!r} is unknown; known: {', '.join(nearest_first(name, known))}")


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """Sort the known names by likeness to `name`, most alike first.

    >>> nearest_first("fedvag", ["random", "fedavg"])
    ['fedavg', 'random']
    """
    return sorted(sorted(known), key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
