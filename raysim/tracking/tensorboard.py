"""Write the metrics of each round to TensorBoard's event files, in the folder `tensorboard` of the run."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from raysim.core.errors import SettingError
from raysim.core.storage.path import StoragePath
from raysim.simulation import records
from raysim.simulation.records import Logged
from raysim.simulation.state import RoundReport
from raysim.tracking.observer import RunInfo, RunObserver, RunOutcome

FOLDER = "tensorboard"
"""Name of the folder with the event files, in that of the run."""
FLUSH_S = 2.0
"""Seconds between two flushes of the file, each of which waits for the disk."""
HEADER, CHECKSUM_BYTES = struct.Struct("<Q4x"), 4
"""An event in a file: its length and a checksum of that, then the event and its checksum."""


class TensorBoardObserver(RunObserver):
    """Writes all metrics of a run by round, each round as one event that is written completely or not at all.

    The event files themselves show which rounds have been written. Rounds are read from the records of the run, so
    those that are missing after a crash are added when it is resumed, and those that are repeated are skipped: each
    point is written once.
    """

    def __init__(self) -> None:
        self._rounds: StoragePath | None = None
        self._writer: EventsWriter | None = None
        self._last, self._flushed = 0, 0.0

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        """Begin a new event file, with the rounds that are missing in those before.

        Raises:
            SettingError: If the folder of the run is not on this machine.
        """
        folder = (run.folder / FOLDER).path
        if folder is None:
            raise SettingError(f"--output={str(run.folder)!r} is not on this machine; TensorBoard's files have to be")
        folder.mkdir(exist_ok=True)
        self._rounds, self._last = run.folder / "rounds", last_round_in(folder)
        self._writer = EventsWriter(str(folder / "events"), f".after{self._last}")
        self._write_up_to(resumed_from)

    def on_round(self, report: RoundReport) -> None:
        """Write the round, if it is not a repeated one."""
        self._write_up_to(report.round)

    def on_end(self, outcome: RunOutcome) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def _write_up_to(self, last: int) -> None:
        if self._rounds is None or self._writer is None:
            return
        for round in range(self._last + 1, last + 1):
            self._writer.write_event(event_of(records.logged(self._rounds, round)))
            self._last = round
        if time.monotonic() >= self._flushed + FLUSH_S:
            self._writer.flush()
            self._flushed = time.monotonic()


def event_of(round: Logged) -> Event:
    """Return all metrics of a round as one event."""
    values = [Summary.Value(tag=name, simple_value=value) for name, value in round.metrics.items()]
    return Event(wall_time=round.timestamp_ms / 1000, step=round.round, summary=Summary(value=values))


def last_round_in(folder: Path) -> int:
    """Return the last round that event files hold, 0 if there is none."""
    return max((event.step for file in folder.glob("*.tfevents.*") for event in events_in(file)), default=0)


def events_in(file: Path) -> Iterator[Event]:
    """Return the events of a file, without one at its end that is not complete."""
    content, start = file.read_bytes(), 0
    while start + HEADER.size <= len(content):
        (length,) = HEADER.unpack_from(content, start)
        first = start + HEADER.size
        start = first + length + CHECKSUM_BYTES
        if start <= len(content):
            yield Event.FromString(content[first : first + length])
