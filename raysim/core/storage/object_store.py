"""Files in an object store, or in any other file system that pyarrow reaches by a URI."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from raysim.core.errors import SettingError, reason_of
from raysim.core.storage import atomic, uris
from raysim.core.storage.path import StoragePath

AT_ONCE = ("s3", "gcs", "abfs")
"""File systems in which a file appears when all of it is there, and folders need not be made."""

REQUESTS_AT_A_TIME = 16
WITHOUT = "a URI without, the credentials in the environment or in a file that the store's own tools read"


class ObjectStorePath(StoragePath):
    """A place given by a URI; options of its file system are the URI's query, as in `s3://bucket/runs?region=...`."""

    __slots__ = ("_inside", "_query", "_root")

    def __init__(self, root: str, inside: str, query: str) -> None:
        self._root, self._inside, self._query = root, inside.strip("/"), query

    @staticmethod
    def of(uri: str) -> "ObjectStorePath":
        """Return the place of a URI.

        Raises:
            SettingError: If pyarrow does not know its scheme or options, or it holds a secret.
        """
        uris.check("", uri, WITHOUT)
        parts = urlsplit(uri)
        place = ObjectStorePath(f"{parts.scheme}://{parts.netloc}", parts.path, parts.query)
        try:
            _ = place._files
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SettingError(
                f"{uri!r} is not allowed: {reason_of(error)}; allowed: a path, or a URI of pyarrow as "
                "s3://BUCKET/FOLDER"
            ) from None
        return place

    @property
    def _files(self) -> Any:
        return _file_system(self._root, self._query)[0]

    @property
    def _where(self) -> str:
        base = _file_system(self._root, self._query)[1].rstrip("/")
        return f"{base}/{self._inside}" if self._inside else base

    @property
    def _appears_at_once(self) -> bool:
        return self._files.type_name in AT_ONCE

    def __str__(self) -> str:
        query = f"?{self._query}" if self._query else ""
        return f"{self._root}/{self._inside}{query}"

    def __truediv__(self, name: str) -> "ObjectStorePath":
        return ObjectStorePath(self._root, f"{self._inside}/{name}", self._query)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._inside.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectStorePath":
        """The folder it is in."""
        return ObjectStorePath(self._root, self._inside.rpartition("/")[0], self._query)

    def is_file(self) -> bool:
        """Whether there is a file."""
        return bool(self._files.get_file_info(self._where).type == fs.FileType.File)

    def is_folder(self) -> bool:
        """Whether there is anything below this place."""
        return bool(self._files.get_file_info(self._where).type == fs.FileType.Directory)

    def children(self) -> list[StoragePath]:
        """Return the files in a folder in the order of their names."""
        found = self._files.get_file_info(fs.FileSelector(self._where, allow_not_found=True))
        return [self / name for name in sorted(info.base_name for info in found) if not name.startswith(".")]

    def make(self) -> None:
        """Make a folder where the file system has them."""
        if not self._appears_at_once:
            self._files.create_dir(self._where, recursive=True)

    def remove(self) -> None:
        """Delete a file."""
        if self.is_file():
            self._files.delete_file(self._where)

    def read(self) -> bytes:
        """Return what is in a file."""
        with self._files.open_input_stream(self._where) as stream:
            return bytes(stream.read())

    def write(self, fill: Callable[[Path], object]) -> "ObjectStorePath":
        """Let `fill` write a file of this machine, then put it here."""
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / self.name
            fill(made)
            return self.write_bytes(made.read_bytes())

    def write_bytes(self, content: bytes) -> "ObjectStorePath":
        """Put a file by one request, or else beside its place and then under its name."""
        if self._appears_at_once:
            self._put(self._where, content)
        else:
            self.parent.make()
            partial = f"{self.parent._where}/{atomic.partial_name(self.name)}"
            self._put(partial, content)
            self.remove()  # not every file system moves a file over another
            self._files.move(partial, self._where)
        return self

    def _put(self, where: str, content: bytes) -> None:
        with self._files.open_output_stream(where) as stream:
            stream.write(content)

    def write_all(self, contents: Mapping[str, bytes]) -> None:
        """Put several files, some at a time."""
        with ThreadPoolExecutor(REQUESTS_AT_A_TIME) as pool:
            list(pool.map(lambda name: (self / name).write_bytes(contents[name]), contents))

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Copy the file to this machine for as long as the context lasts."""
        with tempfile.TemporaryDirectory() as folder:
            copied = Path(folder) / self.name
            copied.write_bytes(self.read())
            yield copied


@lru_cache(maxsize=8)
def _file_system(root: str, query: str) -> tuple[Any, str]:
    """Return the file system of a URI, and the path of its root; each process makes its own."""
    found, base = fs.FileSystem.from_uri(f"{root}?{query}" if query else root)
    return found, base
