"""The journal of a sweep: one line for each result or end of a trial, in the order of their arrival."""

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
        trial: The index of the trial.
        round: Its last round.
        value: Its value of the metric by which trials are compared.
        accuracy: Its test accuracy.
        ended: `finished`, `stopped early` or `failed`; empty if it has not ended.
        failure: Why it failed; empty if it did not.
    """

    trial: int
    round: int = 0
    value: float | None = None
    accuracy: float | None = None
    ended: str = ""
    failure: str = ""


@dataclass(slots=True)
class Standing:
    """The latest results of a trial.

    Attributes:
        round: The last round with a result.
        value: Its value of the metric by which trials are compared.
        accuracy: Its test accuracy.
        ended: As in `Entry`.
        failure: As in `Entry`.
    """

    round: int = 0
    value: float | None = None
    accuracy: float | None = None
    ended: str = ""
    failure: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do; a failed trial is tried again when the sweep is resumed."""
        return self.ended in (FINISHED, STOPPED)


class Journal:
    """The journal of a sweep and the standings of its trials; only the process that started the sweep writes it."""

    def __init__(self, folder: Path, num_trials: int) -> None:
        """Read the journal in a folder, if there is one; an incomplete last line is removed."""
        self._path = folder / NAME
        self.entries: list[Entry] = []
        self.standings = [Standing() for _ in range(num_trials)]
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.is_file() else []
        for line in lines:
            if line.endswith("\n"):
                self._update(Entry(**json.loads(line)))
        if lines and not lines[-1].endswith("\n"):
            self._path.write_text("".join(lines[:-1]), encoding="utf-8")

    def add(self, entry: Entry) -> None:
        """Append a line, and return when it is on the disk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._update(entry)

    def _update(self, entry: Entry) -> None:
        self.entries.append(entry)
        standing = self.standings[entry.trial]
        if entry.value is not None:
            standing.round, standing.value, standing.accuracy = entry.round, entry.value, entry.accuracy
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
