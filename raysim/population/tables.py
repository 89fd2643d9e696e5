"""Read devices from a CSV or Parquet table: a row per device, columns named as in a profile."""

import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from raysim.config.settings import LARGEST, SMALLEST
from raysim.core.errors import SettingError, nearest_first, shortened
from raysim.core.storage import user_files
from raysim.population import sampling
from raysim.population.profiles import FIGURES, DeviceProfile, Devices

SUFFIXES = (".csv", ".parquet")
MAX_DEVICES = 2_000_000
"""Largest number of rows of a table, which take some 400 MB."""
REQUIRED = ("flops_per_s", "down_bytes_per_s", "up_bytes_per_s")
NUMBERS = ("keep_ratio", *FIGURES)
KNOWN = ("name", *NUMBERS)
UNLIMITED = ("memory_bytes_per_s", "memory_bytes", "data_cap_bytes", "battery_j")
"""Columns in which an empty cell means no limit; elsewhere it means the default."""
DEFAULTS: dict[str, Any] = {"keep_ratio": 1.0, **{field.name: field.default for field in fields(DeviceProfile)}}


class Range(NamedTuple):
    """A range of numbers in words, and its test."""

    words: str
    holds: Callable[[NDArray[np.float64]], NDArray[np.bool_]]


ABOVE_0 = Range("above 0 and finite", lambda values: (values >= SMALLEST) & (values <= LARGEST))
AT_LEAST_0 = Range("at least 0 and finite", lambda values: (values >= 0) & (values <= LARGEST))
SPREAD = Range("in [0, 10]", lambda values: (values >= 0) & (values <= 10))
SHARE = Range("in (0, 1]", lambda values: (values > 0) & (values <= 1))
ALLOWED = {
    **dict.fromkeys(NUMBERS, AT_LEAST_0),
    **dict.fromkeys((*REQUIRED, *UNLIMITED), ABOVE_0),
    **dict.fromkeys(("compute_variation", "link_variation", "link_drift"), SPREAD),
    **dict.fromkeys(("keep_ratio", "availability"), SHARE),
    "availability_swing": Range("in [0, 1]", lambda values: (values >= 0) & (values <= 1)),
    "failure_rate": Range("in [0, 1)", lambda values: (values >= 0) & (values < 1)),
}
"""Allowed range of each figure, as in the settings of a profile."""


def read(path: str) -> Devices:
    """Read a `.csv` or `.parquet` file, with one client for each device.

    Raises:
        SettingError: If it cannot be read, or a column or a value is not allowed; rows are counted from 1, after the
            header.
    """
    setting = f"population.devices.path={shortened(path)}"
    table = _table(path, setting)
    _check_columns(table, setting)
    is_text = Path(path).suffix.lower() == ".csv"
    given = [name for name in NUMBERS if name in table.column_names]
    figures = {name: _numbers(table[name], name, setting, is_text) for name in given}
    keep_ratios = figures.pop("keep_ratio", None)
    tiers = _tiers(table["name"], setting) if "name" in table.column_names else None
    return sampling.of_columns(figures, keep_ratios, tiers)


def _table(path: str, setting: str) -> Any:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise SettingError(f"{setting} is no table of devices; allowed: a file that ends in .csv or .parquet")
    if not os.path.exists(path):
        raise SettingError(f"{setting} does not exist; allowed: an existing file")
    if suffix == ".parquet":
        return user_files.read_parquet(setting, path, MAX_DEVICES, KNOWN)
    user_files.check_file(setting, path, MAX_DEVICES * 500)
    as_text = csv.ConvertOptions(
        column_types=dict.fromkeys(KNOWN, pa.string()), null_values=[""], strings_can_be_null=True
    )
    try:
        return csv.read_csv(path, convert_options=as_text)
    except (pa.ArrowException, OSError) as error:
        raise SettingError(f"{setting} cannot be read as {suffix}: {' '.join(str(error).split())}") from None


def _check_columns(table: Any, setting: str) -> None:
    names: list[str] = table.column_names
    for name in names:
        if name not in KNOWN:
            known = nearest_first(name, KNOWN)
            raise SettingError(
                f"{setting}: column {name!r} is unknown; did you mean {known[0]}? Known: {', '.join(known)}"
            )
        if names.count(name) > 1:
            raise SettingError(f"{setting}: column {name!r} is given {names.count(name)} times; allowed: once")
    for name in REQUIRED:
        if name not in names:
            raise SettingError(f"{setting}: column {name!r} is missing; needed: {', '.join(REQUIRED)}")
    if table.num_rows > MAX_DEVICES:
        raise SettingError(f"{setting} has {table.num_rows:,} rows; allowed: at most {MAX_DEVICES:,}")
    if table.num_rows == 0:
        raise SettingError(f"{setting} holds no devices; allowed: at least one row")


def _numbers(column: Any, name: str, setting: str, is_text: bool) -> NDArray[np.float64]:
    """Return the numbers of a column, with the default for empty cells, `(devices,)`."""
    empty = column.is_null().to_numpy()
    values = _as_floats(column, name, setting, is_text)
    wrong = ~ALLOWED[name].holds(values) & ~empty
    if name in REQUIRED:
        wrong |= empty
    if wrong.any():
        row = int(np.argmax(wrong))
        value = "" if empty[row] else f"{values[row]:g}"
        raise _not_allowed(setting, row, name, value)
    return values if name in REQUIRED else np.where(empty, DEFAULTS[name], values)


def _as_floats(column: Any, name: str, setting: str, is_text: bool) -> NDArray[np.float64]:
    is_number = any(check(column.type) for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_null))
    if is_number or is_text:
        try:
            return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
        except pa.ArrowInvalid:
            pass
    values = column.to_pylist()
    for row, value in enumerate(values):
        if value is not None and not (is_text and _is_number(value)):
            raise _not_allowed(setting, row, name, value)
    return np.array([np.nan if value is None else float(value) for value in values])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _not_allowed(setting: str, row: int, name: str, value: object) -> SettingError:
    allowed = f"a number {ALLOWED[name].words}"
    if name in UNLIMITED:
        allowed += ", or an empty cell for no limit"
    return SettingError(f"{setting}: row {row + 1}: {name}={value!s} is not allowed; allowed: {allowed}")


def _tiers(column: Any, setting: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names in order of appearance, and the index of each device's name."""
    is_encoded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if is_encoded else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise SettingError(f"{setting}: column 'name' holds {kind}; allowed: text")
    whole = column.unify_dictionaries().combine_chunks() if is_encoded else column.combine_chunks()
    encoded = whole if is_encoded else whole.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    wrong = [name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)]
    if column.null_count or wrong:
        value = None if column.null_count else wrong[0]
        indices = encoded.indices.fill_null(-1).to_numpy()
        row = int(np.argmax(indices == (-1 if value is None else names.index(value)))) + 1
        raise SettingError(
            f"{setting}: row {row}: name={(value or '')[:64]} is not allowed; allowed: letters, digits, - and _"
        )
    return tuple(names), encoded.indices.to_numpy().astype(np.int64)
