"""The journal of a sweep: one line for each result or end of a trial, in the order of their arrival."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysim.config.metric import ACCURACY, FIELD, PrimaryMetric
from raysim.core.storage import json_lines

NAME = "journal.jsonl"
NUMBER = (float, int, type(None))
KINDS = {"trial": (int,), "round": (int,), "value": NUMBER, FIELD: NUMBER, "ended": (str,), "failure": (str,)}
"""Types of the entries of a line."""
FINISHED, STOPPED, FAILED = "finished", "stopped early", "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal: a result of a trial, or its end.

    Attributes:
        trial: The index of the trial.
        round: Its last round.
        value: Its value of the metric by which trials are compared.
        primary: Its primary metric on the validation rows, or on the test rows where there are none; in the file it
            has the metric's name.
        ended: `finished`, `stopped early` or `failed`; empty if it has not ended.
        failure: Why it failed; empty if it did not.
    """

    trial: int
    round: int = 0
    value: float | None = None
    primary: float | None = None
    ended: str = ""
    failure: str = ""


@dataclass(slots=True)
class Standing:
    """The latest results of a trial.

    Attributes:
        round: The last round with a result.
        value: Its value of the metric by which trials are compared.
        primary: As in `Entry`.
        ended: As in `Entry`.
        failure: As in `Entry`.
    """

    round: int = 0
    value: float | None = None
    primary: float | None = None
    ended: str = ""
    failure: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do; a failed trial is tried again when the sweep is resumed."""
        return self.ended in (FINISHED, STOPPED)


class Journal:
    """The journal of a sweep and the standings of its trials; only the process that started the sweep writes it."""

    def __init__(self, folder: Path, num_trials: int, primary: PrimaryMetric = ACCURACY) -> None:
        """Read the journal in a folder, if there is one; an incomplete last line is left out."""
        self._path, self._primary = folder / NAME, primary
        self.entries: list[Entry] = []
        self.standings = [Standing() for _ in range(num_trials)]
        for entry in json_lines.read(self._path, self._entry_of):
            self._update(entry)

    def _entry_of(self, content: Any) -> Entry:
        if not isinstance(content, dict):
            raise ValueError("an entry is no mapping")
        entry = Entry(**{FIELD if name == self._primary.name else name: value for name, value in content.items()})
        fits = all(isinstance(getattr(entry, name), kinds) for name, kinds in KINDS.items())
        if not fits or not 0 <= entry.trial < len(self.standings):
            raise ValueError("an entry has another type, or names no trial of the sweep")
        return entry

    def add(self, entry: Entry) -> None:
        """Append a line, and return when it is on the disk."""
        json_lines.append(self._path, self._primary.as_recorded(asdict(entry)))
        self._update(entry)

    def _update(self, entry: Entry) -> None:
        self.entries.append(entry)
        standing = self.standings[entry.trial]
        if entry.value is not None:
            standing.round, standing.value, standing.primary = entry.round, entry.value, entry.primary
        standing.ended, standing.failure = entry.ended, entry.failure

    @property
    def unfinished(self) -> list[int]:
        """The indices of the trials that are not over."""
        return [index for index, standing in enumerate(self.standings) if not standing.is_over]

    def best(self, mode: str) -> int | None:
        """Return the index of the best trial that finished; if none has, of the best with a result; None without any.

        Args:
            mode: `max` or `min`.
        """
        known = [index for index, standing in enumerate(self.standings) if standing.value is not None]
        finished = [index for index in known if self.standings[index].ended == FINISHED]
        sign = 1 if mode == "max" else -1

        def rank(index: int) -> tuple[float, int]:
            return sign * (self.standings[index].value or 0.0), -index

        return max(finished or known, key=rank, default=None)


def results_of(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that are results."""
    return [entry for entry in entries if entry.value is not None and not entry.ended]
