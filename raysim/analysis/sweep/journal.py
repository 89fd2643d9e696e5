"""What has become of a sweep's trials, one line for each result, in the order in which they came in."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "journal.jsonl"
FINISHED, STOPPED, FAILED = "finished", "stopped early", "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal: a result of a trial, or its end.

    Attributes:
        trial: Its place.
        round: The last round it has played.
        value: What it has reached by the metric that trials are held against each other by.
        accuracy: Its test accuracy.
        ended: Empty while it goes on, else how it ended: `finished`, `stopped early` or `failed`.
        failure: Why it failed.
    """

    trial: int
    round: int = 0
    value: float | None = None
    accuracy: float | None = None
    ended: str = ""
    failure: str = ""


@dataclass(slots=True)
class Standing:
    """How a trial stands.

    Attributes:
        round: The last round with a result.
        value: That result.
        accuracy: Its test accuracy.
        ended: As in `Entry`.
        failure: Why it failed.
    """

    round: int = 0
    value: float | None = None
    accuracy: float | None = None
    ended: str = ""
    failure: str = ""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do: one that failed is tried again when the sweep goes on."""
        return self.ended in (FINISHED, STOPPED)


class Journal:
    """The journal of a sweep and how its trials stand; written by the process that started the sweep alone."""

    def __init__(self, folder: Path, num_trials: int) -> None:
        """Read what is there; a last line that was cut off has not been written."""
        self._path = folder / NAME
        self.entries: list[Entry] = []
        self.standings = [Standing() for _ in range(num_trials)]
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.is_file() else []
        for line in lines:
            if line.endswith("\n"):
                self._note(Entry(**json.loads(line)))
        if lines and not lines[-1].endswith("\n"):
            self._path.write_text("".join(lines[:-1]), encoding="utf-8")

    def add(self, entry: Entry) -> None:
        """Write a line; it is on the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        self.entries.append(entry)
        standing = self.standings[entry.trial]
        if entry.value is not None:
            standing.round, standing.value, standing.accuracy = entry.round, entry.value, entry.accuracy
        standing.ended, standing.failure = entry.ended, entry.failure

    @property
    def unfinished(self) -> list[int]:
        """Places of the trials that are left."""
        return [place for place, standing in enumerate(self.standings) if not standing.is_over]

    def best(self, mode: str) -> int | None:
        """Return the place of the best trial: of those that finished, if any has, else of all with a result."""
        known = [place for place, standing in enumerate(self.standings) if standing.value is not None]
        finished = [place for place in known if self.standings[place].ended == FINISHED]
        sign = 1 if mode == "max" else -1

        def rank(place: int) -> tuple[float, int]:
            return sign * (self.standings[place].value or 0.0), -place

        return max(finished or known, key=rank, default=None)


def results_of(entries: Sequence[Entry]) -> list[Entry]:
    """Return the results among a journal's lines."""
    return [entry for entry in entries if entry.value is not None and not entry.ended]
