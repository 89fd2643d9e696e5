"""The types of columns in a run's tables: text where it is text, whole numbers where they are, else numbers."""

import pyarrow as pa
from pyarrow import types

TEXT = ("tier", "fate", "limited_by")
WHOLE = ("round", "client", "unit", "clients", "examples", "label", "rows", "started_round", "timestamp_ms")


def check_types(table: pa.Schema) -> None:
    """Raise ValueError if a column of a run's table, or of a part of it, has another type than it is written with.

    A column without any value has no type.

    >>> check_types(pa.schema({"round": pa.int64(), "tier": pa.string(), "loss": pa.string()}))
    Traceback (most recent call last):
    ValueError: its column 'loss' is of type string, not a number
    """
    for field in table:
        if not _is_as_written(field):
            wanted = "text" if field.name in TEXT else "a whole number" if field.name in WHOLE else "a number"
            raise ValueError(f"its column {field.name!r} is of type {field.type}, not {wanted}")


def _is_as_written(field: pa.Field) -> bool:
    kind = field.type
    if field.name in WHOLE:
        return bool(types.is_integer(kind))
    if types.is_null(kind):
        return True
    if field.name in TEXT:
        return bool(types.is_string(kind) or types.is_large_string(kind))
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
