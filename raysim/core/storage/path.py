"""The verbs of a place where files live, on this machine or not."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path


class StoragePath(ABC):
    """A file or folder; files appear whole or not at all, and are kept when a write returns."""

    __slots__ = ()

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def __truediv__(self, name: str) -> "StoragePath":
        """Return the place of this name in a folder."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its path."""

    @property
    @abstractmethod
    def parent(self) -> "StoragePath":
        """The folder it is in."""

    @property
    def path(self) -> Path | None:
        """Its path where it is on this machine."""
        return None

    @abstractmethod
    def is_file(self) -> bool:
        """Whether there is a file."""

    @abstractmethod
    def is_folder(self) -> bool:
        """Whether there is a folder, or anything below this place."""

    @abstractmethod
    def children(self) -> "list[StoragePath]":
        """Return the files in a folder in the order of their names; none where there is no folder."""

    @abstractmethod
    def make(self) -> None:
        """Make a folder where there is none."""

    @abstractmethod
    def remove(self) -> None:
        """Delete a file."""

    @abstractmethod
    def read(self) -> bytes:
        """Return what is in a file."""

    @abstractmethod
    def write(self, fill: Callable[[Path], object]) -> "StoragePath":
        """Let `fill` write a file at a path of this machine, which then appears here at once; return this place."""

    @abstractmethod
    def write_all(self, contents: Mapping[str, bytes]) -> None:
        """Write several files into a folder, by name; all are kept when it returns, each appears at once."""

    @abstractmethod
    def fetched(self) -> AbstractContextManager[Path]:
        """Give a file's path on this machine, for as long as the context lasts."""

    def held(self) -> AbstractContextManager[None]:
        """Hold a folder against other processes, where its file system can."""
        return nullcontext()

    def read_text(self) -> str:
        """Return what is in a text file."""
        return self.read().decode("utf-8")

    def write_text(self, text: str) -> "StoragePath":
        """Write a text file."""
        return self.write_bytes(text.encode("utf-8"))

    def write_bytes(self, content: bytes) -> "StoragePath":
        """Write a file."""
        return self.write(writing(content))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoragePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"storage_path({str(self)!r})"


def writing(content: bytes) -> Callable[[Path], object]:
    """Return what writes bytes into a file at the path it is given."""
    return lambda partial: partial.write_bytes(content)
