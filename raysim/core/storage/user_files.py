"""Check files of users before they are read: what they are, and how much memory their content takes."""

import stat
import zipfile
from pathlib import Path
from typing import Any

from raysim.core import memory
from raysim.core.errors import SettingError, refusing

GROWTH = 8
"""Bytes of memory, at most, that a byte of text or of a pickle takes once it is read."""


def check_file(setting: str, path: str, most_bytes: int | None = None) -> None:
    """Refuse what is no file, or one whose content memory does not hold.

    Args:
        setting: The setting and its value, for messages.
        path: The file.
        most_bytes: The largest size of the file. None: what memory holds.

    Raises:
        SettingError: If it is no file, or too large.
    """
    try:
        found = Path(path).stat()
    except OSError as error:
        raise SettingError(f"{setting} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingError(f"{setting} is no path: {error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise SettingError(f"{setting} is no file; allowed: a file")
    if most_bytes is not None and found.st_size > most_bytes:
        raise SettingError(f"{setting} has {found.st_size:,} bytes; allowed: at most {most_bytes:,}")
    memory.check_fits(f"{setting} of {found.st_size:,} bytes", path, found.st_size * GROWTH)


def read_parquet(setting: str, path: str, most_rows: int, known: tuple[str, ...], others: bool = False) -> Any:
    """Return some columns of a Parquet file, whose footer says before how many rows they have; texts as dictionaries.

    Args:
        setting: The setting and its value, for messages.
        path: The file.
        most_rows: The largest number of rows.
        known: Names of the columns that are read.
        others: Whether other columns are left out; else a table that has any is returned without rows.

    Raises:
        SettingError: If it cannot be read, has more rows, or a column of lists or records.
    """
    import pyarrow as pa
    from pyarrow import parquet

    check_file(setting, path)
    unreadable = f"{setting} cannot be read as .parquet"
    with refusing(unreadable), parquet.ParquetFile(path) as opened:
        rows, schema = opened.metadata.num_rows, opened.schema_arrow
        if rows > most_rows:
            raise SettingError(f"{setting} has {rows:,} rows; allowed: at most {most_rows:,}")
    names = [name for name in schema.names if name in known]
    if len(set(names)) < (len(names) if others else len(schema.names)):
        return schema.empty_table()
    kinds = {name: schema.field(name).type for name in names}
    for name, kind in kinds.items():
        if pa.types.is_nested(kind):
            raise SettingError(f"{setting}: column {name!r} holds lists or records; allowed: single values")
    values = {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in kinds.items()}
    texts = [name for name, kind in values.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    with refusing(unreadable), parquet.ParquetFile(path, read_dictionary=texts) as opened:
        return opened.read(names)


def parquet_names(setting: str, path: str) -> list[str]:
    """Return the names of a Parquet file's columns, from its footer.

    Raises:
        SettingError: If it cannot be read.
    """
    from pyarrow import parquet

    check_file(setting, path)
    with refusing(f"{setting} cannot be read as .parquet"), parquet.ParquetFile(path) as opened:
        return list(opened.schema_arrow.names)


def check_zip(setting: str, path: str, most_bytes: int) -> None:
    """Refuse a zip archive, such as `.npz`, whose content is larger than allowed.

    Raises:
        SettingError: If it cannot be read, or is too large.
    """
    check_file(setting, path)
    with refusing(f"{setting} cannot be read"), zipfile.ZipFile(path) as archive:
        num_bytes = sum(each.file_size for each in archive.infolist())
    if num_bytes > most_bytes:
        raise SettingError(f"{setting} holds {num_bytes:,} bytes; allowed: at most {most_bytes:,}")
