"""Read FedScale's two public traces: the capacity of devices, and when they are online."""

import pickle
import struct
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.config.settings import LARGEST, SMALLEST
from raysim.core.errors import SettingError, shortened
from raysim.core.json_text import json_in
from raysim.core.storage import user_files
from raysim.population import sampling
from raysim.population.profiles import Devices, OnlineIntervals

INFERENCE_FLOPS = 6e8
"""FLOPs of an inference of MobileNet v2 (300 million multiply-accumulates, Sandler et al., arXiv 1801.04381).

FedScale's README does not name the timed network; a mobile one is assumed.
"""
CAPACITY, AVAILABILITY = "population.devices.fedscale", "population.devices.availability"


def read_capacity(path: str, inference_flops: float | None = None) -> Devices:
    """Read FedScale's device capacities, `{id: {"computation": ms, "communication": kbit/s}}`.

    FedScale counts a training step as three inferences, and so do counted FLOPs: the speed is that of inference. Both
    directions have the same bandwidth, as in FedScale.

    Args:
        path: A pickle or JSON file.
        inference_flops: FLOPs of the timed inference. None: `INFERENCE_FLOPS`.

    Returns:
        One client for each device, in the order of the file, in tiers of thirds by speed.

    Raises:
        SettingError: If the file holds anything else.
    """
    records = _records(path, CAPACITY, ("computation", "communication"))
    ms = _positive(records, "computation", path, CAPACITY)
    bytes_per_s = _positive(records, "communication", path, CAPACITY) * (1000 / 8)
    flops_per_s = (inference_flops or INFERENCE_FLOPS) / (ms / 1000)
    return sampling.of_columns(
        {"flops_per_s": flops_per_s, "down_bytes_per_s": bytes_per_s, "up_bytes_per_s": bytes_per_s}
    )


def with_availability(owned: Devices, path: str, seed: int) -> Devices:
    """Give every client a trace of when it is online: in order for as many clients, else drawn from the seed.

    Raises:
        SettingError: If the file holds no such traces, or the devices have an availability of their own.
    """
    for name, always in (("availability", 1.0), ("availability_swing", 0.0)):
        others = owned.figures[name] != always
        if others.any():
            value = owned.figures[name][np.argmax(others)]
            raise SettingError(f"{name}={value:g} has no effect with {AVAILABILITY}={path!r}; allowed: {always:g}")
    online = read_availability(path)
    trace_of = sampling.drawn_indices(len(online.periods), len(owned), seed, "availability traces")
    return replace(owned, online=online, trace_of=trace_of)


def read_availability(path: str) -> OnlineIntervals:
    """Read FedScale's availability, `{id: {"active": [s], "inactive": [s], "finish_time": s}}`.

    A device is online from each `active` second to the `inactive` second of the same index, and again after every
    `finish_time` seconds; as in FedScale, later seconds of a trace are ignored.

    Raises:
        SettingError: If the file holds anything else.
    """
    records = _records(path, AVAILABILITY, ("active", "inactive", "finish_time"))
    periods = _positive(records, "finish_time", path, AVAILABILITY)
    starts, counts = _flat(records, "active", path)
    ends, end_counts = _flat(records, "inactive", path)
    unequal = counts != end_counts
    if unequal.any():
        index = int(np.argmax(unequal))
        problem = f"has {counts[index]} active and {end_counts[index]} inactive seconds; allowed: equally many"
        raise _wrong(records, index, path, AVAILABILITY, problem)
    trace = np.repeat(np.arange(len(counts)), counts)
    _check_order(records, trace, starts, ends, path)
    intervals = _merged(trace, starts, np.minimum(ends, periods[trace]), periods)
    if not len(intervals.starts):
        raise SettingError(f"{AVAILABILITY}={path!r} holds no device that is ever online")
    return intervals


Records = tuple[Sequence[Any], Sequence[Any]]
"""Ids and records of a trace file, in the order of the file."""


def _records(path: str, setting: str, keys: tuple[str, ...]) -> Records:
    content = read(path, setting)
    if not isinstance(content, dict) or not content:
        raise SettingError(
            f"{setting}={path!r} holds {'nothing' if content == {} else type(content).__name__}; "
            f"allowed: a dict of records with {', '.join(keys)} by id"
        )
    records = list(content), list(content.values())
    for index, record in enumerate(records[1]):
        if not isinstance(record, dict) or not all(key in record for key in keys):
            found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise _wrong(records, index, path, setting, f"holds {found or 'nothing'}; needed: {', '.join(keys)}")
    return records


def _positive(records: Records, key: str, path: str, setting: str) -> NDArray[np.float64]:
    values = _numbers([record[key] for record in records[1]])
    wrong = ~((values >= SMALLEST) & (values <= LARGEST))
    if wrong.any():
        index = int(np.argmax(wrong))
        value = records[1][index][key]
        raise _wrong(
            records, index, path, setting, f"has {key}={shortened(value)}; allowed: a number above 0 and finite"
        )
    return values


def _flat(records: Records, key: str, path: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the seconds of all records in one array, and the number of each record's seconds."""
    lists = [record[key] for record in records[1]]
    for index, seconds in enumerate(lists):
        if not isinstance(seconds, list | tuple):
            raise _wrong(
                records, index, path, AVAILABILITY, f"has {key}={shortened(seconds)}; allowed: a list of seconds"
            )
    counts = np.array([len(seconds) for seconds in lists])
    every = list(chain.from_iterable(lists))
    values = _numbers(every)
    wrong = ~((values >= 0) & (values <= LARGEST))
    if wrong.any():
        first = int(np.argmax(wrong))
        index = int(np.searchsorted(np.cumsum(counts), first, side="right"))
        raise _wrong(
            records,
            index,
            path,
            AVAILABILITY,
            f"has {shortened(every[first])} in {key}; allowed: seconds, at least 0",
        )
    return values, counts


def _check_order(
    records: Records, trace: NDArray[np.int64], starts: NDArray[np.float64], ends: NDArray[np.float64], path: str
) -> None:
    wrong = ends < starts
    wrong[1:] |= (trace[1:] == trace[:-1]) & (starts[1:] < ends[:-1])
    if wrong.any():
        first = int(np.argmax(wrong))
        problem = (
            f"has active={starts[first]:g} with inactive={ends[first]:g} out of order; "
            "allowed: active up to inactive, one interval after another"
        )
        raise _wrong(records, int(trace[first]), path, AVAILABILITY, problem)


def _merged(
    trace: NDArray[np.int64], starts: NDArray[np.float64], ends: NDArray[np.float64], periods: NDArray[np.float64]
) -> OnlineIntervals:
    """Drop empty intervals and join those that touch."""
    some = starts < ends
    trace, starts, ends = trace[some], starts[some], ends[some]
    goes_on = (trace[1:] == trace[:-1]) & (starts[1:] == ends[:-1])
    is_first, is_last = np.ones(len(trace), np.bool_), np.ones(len(trace), np.bool_)
    is_first[1:], is_last[:-1] = ~goes_on, ~goes_on
    counts = np.bincount(trace[is_first], minlength=len(periods))
    return OnlineIntervals(np.concatenate([[0], np.cumsum(counts)]), starts[is_first], ends[is_last], periods)


def _numbers(values: list[Any]) -> NDArray[np.float64]:
    """Return a list as numbers; other values become NaN, which no bound allows."""
    if set(map(type, values)) <= {int, float}:
        try:
            return np.array(values, np.float64)
        except OverflowError:
            pass
    return np.array([_number(value) for value in values], np.float64)


def _number(value: object) -> float:
    try:
        return float(value) if type(value) in (int, float) else np.nan  # type: ignore[arg-type]
    except OverflowError:
        return np.nan


def _wrong(records: Records, index: int, path: str, setting: str, problem: str) -> SettingError:
    return SettingError(f"{setting}={path!r}: device {records[0][index]!r} {problem}")


def read(path: str, setting: str) -> Any:
    """Return the content of a pickle or JSON file; no code of the pickle runs.

    Args:
        path: The file.
        setting: The setting that names the file, for errors.

    Raises:
        SettingError: If the file cannot be read, or needs anything but containers, numbers and text.
    """
    user_files.check_file(f"{setting}={shortened(path)}", path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingError(f"{setting}={path!r} cannot be read: {error.strerror}") from None
    try:
        return json_in(content) if content[:64].lstrip()[:1] == b"{" else _PlainUnpickler(content).load()
    except _ForbiddenGlobalError as error:
        raise SettingError(
            f"{setting}={path!r} refers to {error}, which could run code; allowed: a pickle or JSON of dicts, lists, "
            "numbers and text"
        ) from None
    except Exception as error:  # a broken pickle may raise anything
        cause = f"{type(error).__name__}: {error}"
        raise SettingError(
            f"{setting}={path!r} is no pickle or JSON of dicts, lists, numbers and text ({cause})"
        ) from None


class _ForbiddenGlobalError(Exception):
    """A pickle needs something that could run code."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers and text; NumPy's single numbers, which some traces hold, become Python's.

    The three callables behind them are made for each file, since a pickle can modify what it receives.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(BytesIO(content), encoding="latin1")

        class NumberType:
            def __init__(self, kind: str, *_: object) -> None:
                self.format, self.order = _NUMBER_FORMATS[kind], "<"

            def __setstate__(self, state: tuple[Any, ...]) -> None:
                self.order = {"<": "<", ">": ">", "|": "<"}[state[1]]

        def number(kind: NumberType, content: str | bytes) -> Any:
            raw = content.encode("latin1") if isinstance(content, str) else content
            return struct.unpack(kind.order + kind.format, raw)[0]

        def encoded(text: str, _codec: str) -> bytes:
            return text.encode("latin1")  # the form of bytes before protocol 3

        self._allowed: dict[tuple[str, str], Any] = {
            ("numpy", "dtype"): NumberType,
            ("numpy.core.multiarray", "scalar"): number,
            ("_codecs", "encode"): encoded,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three callables, or refuse."""
        try:
            return self._allowed[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise _ForbiddenGlobalError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse objects outside the pickle."""
        raise _ForbiddenGlobalError(f"the outside object {pid!r}")


_NUMBER_FORMATS = {
    "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip
"""Formats of `struct` by the names of NumPy's types."""
