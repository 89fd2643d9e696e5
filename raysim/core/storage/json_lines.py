"""Append JSON objects to a file, one a line; each is on the disk before the next."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from raysim.core.errors import SettingError, reason_of
from raysim.core.json_text import json_in

Record = TypeVar("Record")


def read(path: Path, parse: Callable[[Any], Record]) -> list[Record]:
    """Return the records of a file, none if it is missing; an incomplete last line is left out.

    Args:
        path: The file.
        parse: Returns the record in the content of a line, and raises TypeError or ValueError for any other content.

    Raises:
        SettingError: If another line is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            found.append(parse(json_in(line.decode())))
        except (TypeError, ValueError) as error:
            raise SettingError(
                f"{str(path)!r} cannot be read: line {number} is damaged: {reason_of(error)}"
            ) from None
    return found


def append(path: Path, content: Mapping[str, Any]) -> None:
    """Append a line in place of an incomplete last one, and return when it is on the disk."""
    with path.open("a+b") as file:
        _drop_incomplete(file)
        file.write(f"{json.dumps(content)}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _drop_incomplete(file: BinaryIO) -> None:
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
