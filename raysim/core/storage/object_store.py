"""Files in an object store, or in any other file system that pyarrow reaches by a URI."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Self
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from raysim.core.errors import SettingError, reason_of
from raysim.core.storage import atomic, uris
from raysim.core.storage.path import StoragePath

ATOMIC = ("s3", "gcs", "abfs")
"""File systems in which a file appears once it is complete, and folders need not be made."""

MAX_REQUESTS = 16
"""Number of requests at a time."""
ALLOWED = "a URI without, the credentials in the environment or in a file that the store's own tools read"


class ObjectStorePath(StoragePath):
    """A path given by a URI; its query holds options of the file system, as in `s3://bucket/runs?region=...`."""

    __slots__ = ("_query", "_root")

    def __init__(self, root: str, inside: PurePath, query: str) -> None:
        super().__init__(inside)
        self._root, self._query = root, query

    @staticmethod
    def of(uri: str) -> "ObjectStorePath":
        """Return the path of a URI.

        Raises:
            SettingError: If pyarrow does not support its scheme or options, or it holds a secret.
        """
        uris.check("", uri, ALLOWED)
        parts = urlsplit(uri)
        path = ObjectStorePath(
            f"{parts.scheme}://{parts.netloc}", PurePosixPath("/", parts.path.strip("/")), parts.query
        )
        try:
            _ = path._files
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SettingError(
                f"{uri!r} is not allowed: {reason_of(error)}; allowed: a path, or a URI of pyarrow as "
                "s3://BUCKET/FOLDER"
            ) from None
        return path

    def __str__(self) -> str:
        return f"{self._root}{self._inside}{f'?{self._query}' if self._query else ''}"

    def _with(self, inside: PurePath) -> Self:
        return type(self)(self._root, inside, self._query)

    @property
    def _files(self) -> Any:
        return _file_system(self._root, self._query)[0]

    @property
    def _location(self) -> str:
        """The path in pyarrow's file system."""
        return f"{_file_system(self._root, self._query)[1].rstrip('/')}{self._inside}".rstrip("/")

    @property
    def _is_atomic(self) -> bool:
        return self._files.type_name in ATOMIC

    def is_file(self) -> bool:
        """Whether there is a file."""
        return bool(self._files.get_file_info(self._location).type == fs.FileType.File)

    def is_folder(self) -> bool:
        """Whether anything lies below this path."""
        return bool(self._files.get_file_info(self._location).type == fs.FileType.Directory)

    def children(self) -> list[StoragePath]:
        """Return what a folder contains, by name."""
        found = self._files.get_file_info(fs.FileSelector(self._location, allow_not_found=True))
        return [self / name for name in sorted(info.base_name for info in found) if not name.startswith(".")]

    def make(self) -> None:
        """Make a folder where the file system has folders."""
        if not self._is_atomic:
            self._files.create_dir(self._location, recursive=True)

    def remove(self) -> None:
        """Delete a file."""
        if self.is_file():
            self._files.delete_file(self._location)

    def read(self) -> bytes:
        """Return the content of a file."""
        with self._files.open_input_stream(self._location) as stream:
            return bytes(stream.read())

    def write(self, fill: Callable[[Path], object]) -> "ObjectStorePath":
        """Let `fill` write a file on this machine, then upload it."""
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / self.name
            fill(made)
            return self.write_bytes(made.read_bytes())

    def write_bytes(self, content: bytes) -> "ObjectStorePath":
        """Upload a file by one request, or else beside its final path, to which it is then moved."""
        if self._is_atomic:
            self._put(self._location, content)
        else:
            self.parent.make()
            partial = f"{self.parent._location}/{atomic.partial_name(self.name)}"
            self._put(partial, content)
            self.remove()  # not every file system moves a file over another
            self._files.move(partial, self._location)
        return self

    def _put(self, location: str, content: bytes) -> None:
        with self._files.open_output_stream(location) as stream:
            stream.write(content)

    def write_all(self, contents: Mapping[str, bytes]) -> None:
        """Upload several files, some at a time."""
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            list(pool.map(lambda name: (self / name).write_bytes(contents[name]), contents))

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Return a context with a copy on this machine."""
        with tempfile.TemporaryDirectory() as folder:
            copied = Path(folder) / self.name
            copied.write_bytes(self.read())
            yield copied


@lru_cache(maxsize=8)
def _file_system(root: str, query: str) -> tuple[Any, str]:
    """Return the file system of a URI and the path of its root; each process makes its own."""
    found, base = fs.FileSystem.from_uri(f"{root}?{query}" if query else root)
    return found, base
