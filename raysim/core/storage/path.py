"""Paths to files and folders, on this machine or in an object store."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePath
from typing import Self


class StoragePath(ABC):
    """A file or folder; files appear whole or not at all, and are kept when a write returns."""

    __slots__ = ("_inside",)

    def __init__(self, inside: PurePath) -> None:
        self._inside = inside

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def _with(self, inside: PurePath) -> Self:
        """Return another path of the same file system."""

    def __truediv__(self, name: str) -> Self:
        """Return the path of this name in a folder."""
        return self._with(self._inside / name)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._inside.name

    @property
    def parent(self) -> Self:
        """The folder that contains this path."""
        return self._with(self._inside.parent)

    @property
    def path(self) -> Path | None:
        """The path on this machine, where it is on this machine."""
        return None

    @abstractmethod
    def is_file(self) -> bool:
        """Whether there is a file."""

    @abstractmethod
    def is_folder(self) -> bool:
        """Whether there is a folder; in an object store, whether anything lies below this path."""

    @abstractmethod
    def children(self) -> "list[StoragePath]":
        """Return what a folder contains, by name, without hidden files; nothing where there is no folder."""

    @abstractmethod
    def make(self) -> None:
        """Make a folder and those that contain it, where they are missing."""

    @abstractmethod
    def remove(self) -> None:
        """Delete a file, if there is one."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the content of a file."""

    @abstractmethod
    def write(self, fill: Callable[[Path], object]) -> "StoragePath":
        """Let `fill` write a file on this machine, which then appears here at once; return this path."""

    @abstractmethod
    def write_all(self, contents: Mapping[str, bytes]) -> None:
        """Write several files into a folder, by name; all are kept when it returns, each appears at once."""

    @abstractmethod
    def fetched(self) -> AbstractContextManager[Path]:
        """Return a context with the path of this file, or of a copy, on this machine."""

    def locked(self) -> AbstractContextManager[None]:
        """Return a context that locks a folder against other processes, where its file system has locks."""
        return nullcontext()

    def remove_partials(self) -> None:
        """Delete the incomplete files of killed writers in a folder and below, where a file system shows them."""
        return

    def read_text(self) -> str:
        """Return the content of a text file."""
        return self.read().decode("utf-8")

    def write_text(self, text: str) -> "StoragePath":
        """Write a text file."""
        return self.write_bytes(text.encode("utf-8"))

    def write_bytes(self, content: bytes) -> "StoragePath":
        """Write a file."""
        return self.write(lambda partial: partial.write_bytes(content))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoragePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"storage_path({str(self)!r})"
