"""Paths on this machine, and `storage_path`, which turns any path or URI into a path."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import Self
from urllib.parse import unquote, urlsplit

from raysim.core.errors import SettingError
from raysim.core.storage import atomic
from raysim.core.storage.path import StoragePath

AnyPath = str | Path | StoragePath
"""A path as callers may give it."""


class LocalPath(StoragePath):
    """A path on this machine, or in a file system that is mounted here."""

    __slots__ = ()

    def __init__(self, path: PurePath) -> None:
        super().__init__(Path(path).absolute())

    def __str__(self) -> str:
        return str(self._inside)

    def __fspath__(self) -> str:
        return str(self._inside)

    def _with(self, inside: PurePath) -> Self:
        return type(self)(inside)

    @property
    def path(self) -> Path:
        """The path itself."""
        return Path(self._inside)

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self.path.is_file()

    def is_folder(self) -> bool:
        """Whether there is a folder."""
        return self.path.is_dir()

    def children(self) -> list[StoragePath]:
        """Return what a folder contains, by name; hidden files are not finished."""
        if not self.path.is_dir():
            return []
        return [LocalPath(child) for child in sorted(self.path.iterdir()) if not child.name.startswith(".")]

    def make(self) -> None:
        """Make a folder where there is none."""
        self.path.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Delete a file."""
        self.path.unlink(missing_ok=True)

    def remove_partials(self) -> None:
        """Delete the incomplete files of killed writers in a folder and below."""
        atomic.remove_partials(self.path)

    def read(self) -> bytes:
        """Return the content of a file."""
        return self.path.read_bytes()

    def write(self, fill: Callable[[Path], object]) -> "LocalPath":
        """Let `fill` write a file beside this path, then rename it."""
        self.parent.make()
        atomic.write_atomically(self.path, fill)
        return self

    def write_all(self, contents: Mapping[str, bytes]) -> None:
        """Write several files, and flush the folder once."""
        self.make()
        for name, content in contents.items():
            atomic.write_atomically(self.path / name, partial(Path.write_bytes, data=content), flush_folder=False)
        atomic.flush(self.path)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Return a context with this path."""
        yield self.path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock a folder until the context ends, or this process does.

        Raises:
            BlockingIOError: If another process has locked it.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def storage_path(given: AnyPath) -> StoragePath:
    """Return the path that a text names; `file://` is a path on this machine.

    Raises:
        SettingError: If pyarrow does not support the URI, it holds a secret, or `file://` names a host.

    >>> str(storage_path("/data/runs") / "one"), str(storage_path("s3://bucket/runs?region=eu-west-1") / "one")
    ('/data/runs/one', 's3://bucket/runs/one?region=eu-west-1')
    """
    if isinstance(given, StoragePath):
        return given
    text = str(given)
    if isinstance(given, Path) or not is_uri(text):
        return LocalPath(Path(given))
    if text.startswith("file:"):
        return LocalPath(_path_of(text))
    from raysim.core.storage.object_store import ObjectStorePath  # importing pyarrow is slow

    return ObjectStorePath.of(text)


def _path_of(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise SettingError(
            f"{uri!r} is not allowed: file:// is followed by a host, here {parts.netloc!r}; "
            "allowed: file:///FOLDER, or a path"
        )
    return Path(unquote(parts.path))


def is_uri(text: str) -> bool:
    """Whether a text is a URI rather than a path.

    >>> is_uri("gs://bucket/runs"), is_uri("runs/one"), is_uri("C:/runs")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None
