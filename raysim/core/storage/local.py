"""Where files live: by a path on this machine, or by a URI in any file system that pyarrow knows."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from raysim.core.errors import SettingError
from raysim.core.storage import atomic
from raysim.core.storage.path import StoragePath, writing

AnyPath = str | Path | StoragePath
"""What a place may be given as."""


class LocalPath(StoragePath):
    """A place on this machine, or in a file system that is mounted here."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def __str__(self) -> str:
        return str(self._path)

    def __fspath__(self) -> str:
        return str(self._path)

    def __truediv__(self, name: str) -> "LocalPath":
        return LocalPath(self._path / name)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._path.name

    @property
    def parent(self) -> "LocalPath":
        """The folder it is in."""
        return LocalPath(self._path.parent)

    @property
    def path(self) -> Path:
        """Its path."""
        return self._path

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self._path.is_file()

    def is_folder(self) -> bool:
        """Whether there is a folder."""
        return self._path.is_dir()

    def children(self) -> list[StoragePath]:
        """Return the files in a folder in the order of their names; hidden ones are not finished."""
        if not self._path.is_dir():
            return []
        return [LocalPath(child) for child in sorted(self._path.iterdir()) if not child.name.startswith(".")]

    def make(self) -> None:
        """Make a folder where there is none."""
        self._path.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Delete a file."""
        self._path.unlink(missing_ok=True)

    def read(self) -> bytes:
        """Return what is in a file."""
        return self._path.read_bytes()

    def write(self, fill: Callable[[Path], object]) -> "LocalPath":
        """Let `fill` write a file beside this place, which then gets its name."""
        self.parent.make()
        atomic.write_atomically(self._path, fill)
        return self

    def write_all(self, contents: Mapping[str, bytes]) -> None:
        """Write several files, the folder being brought to the disk once."""
        self.make()
        for name, content in contents.items():
            atomic.write_atomically(self._path / name, writing(content), flush_folder=False)
        atomic.flush(self._path)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Give the file's path."""
        yield self._path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a folder against other processes until the context ends, or this process does.

        Raises:
            BlockingIOError: If another process holds it.
        """
        descriptor = os.open(self._path, os.O_RDONLY)
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
    """Return the place of a path or URI; `file://` is a path.

    Raises:
        SettingError: If it is a URI that pyarrow does not know, or holds a secret, or `file://` names a host.

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
    from raysim.core.storage.object_store import ObjectStorePath  # pyarrow takes its time to import

    return ObjectStorePath.of(text)


def _path_of(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise SettingError(
            f"{uri!r} is not allowed: after file:// stands a host, here {parts.netloc!r}; allowed: file:///FOLDER, "
            "or a path"
        )
    return Path(unquote(parts.path))


def is_uri(text: str) -> bool:
    """Whether a text is a URI rather than a path.

    >>> is_uri("gs://bucket/runs"), is_uri("runs/one"), is_uri("C:/runs")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None
