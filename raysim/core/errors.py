"""Errors for users: bad settings (exit code 2) and failed runs (exit code 1)."""

import difflib
import textwrap
from collections.abc import Iterable


class SettingError(ValueError):
    """A setting has a value that is not allowed; the message names the setting, the value and what is allowed."""


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


def reason_of(error: BaseException | None) -> str:
    """Return the first line of an error's message, shortened: some servers answer with whole pages.

    >>> reason_of(None), reason_of(TimeoutError()), reason_of(OSError("no space"))
    ('no answer in time', 'TimeoutError', 'no space')
    """
    if error is None:
        return "no answer in time"
    text = str(error).strip() or type(error).__name__
    return textwrap.shorten(text.splitlines()[0], 300, placeholder=" ...")


def unknown_name(setting: str, name: str, known: Iterable[str]) -> SettingError:
    """Return the error for a name that a table lacks; it lists the known names, nearest first."""
    return SettingError(f"{setting}={name!r} is unknown; known: {', '.join(nearest_first(name, known))}")


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """Sort the known names by similarity to `name`, most similar first.

    >>> nearest_first("fedvag", ["random", "fedavg"])
    ['fedavg', 'random']
    """
    return sorted(sorted(known), key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
