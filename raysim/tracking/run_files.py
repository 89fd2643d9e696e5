"""The files of a run, in its folder or among its artifacts in MLflow, copied to this machine only where necessary."""

import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysim.core.errors import SettingError, reason_of
from raysim.core.json_text import json_in
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.simulation import records
from raysim.simulation.parts import parts_in
from raysim.tracking.metric_rounds import rounds_in_metrics
from raysim.tracking.run_json import ENTRIES, check_entries

if TYPE_CHECKING:
    from raysim.tracking.mlflow_reader import MlflowReader

SETTINGS = "config.yaml"
"""Every folder of a run holds this file."""


class TemporaryFolder:
    """A temporary folder that is made when it is first used, and removed by `close` or with this object."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._is_closed = False

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            ValueError: If it was closed.
        """
        if self._is_closed:
            raise ValueError("it was closed")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="raysim-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def close(self) -> None:
        """Remove the folder."""
        self._is_closed = True
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class RunFiles(ABC):
    """The files of one run."""

    def __init__(self) -> None:
        self.copies = TemporaryFolder()

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """Return the path on this machine of a file that is there, copied if it is elsewhere."""

    @property
    def is_behind(self) -> bool:
        """Whether whole tables may lack rounds: they are of an earlier interruption, and the run goes on."""
        return False

    @abstractmethod
    def so_far(self, table: str) -> Path | None:
        """Return a table that is made from the records of single rounds; None if there are none."""


class FolderFiles(RunFiles):
    """The files in the folder of a run, on this machine or in an object store."""

    def __init__(self, folder: StoragePath) -> None:
        super().__init__()
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.folder / name).is_file()

    def path(self, name: str) -> Path:
        """Return the path on this machine of a file that is there, copied if it is elsewhere."""
        file = self.folder / name
        if file.path is not None:
            return file.path
        copy = self.copies.path / name
        if not copy.exists():
            copy.write_bytes(file.read())
        return copy

    def so_far(self, table: str) -> Path | None:
        """Return a table that is merged from the parts of single rounds; None if there are no parts."""
        merged = self.copies.path / "merged" / f"{table}.parquet"
        if not merged.exists():
            if not parts_in(self.folder / table):
                return None
            records.merge_parts(self.folder / table, merged, together=table == "rounds")
        return merged


class ArtifactFiles(RunFiles):
    """The artifacts of a run in MLflow."""

    def __init__(self, store: "MlflowReader", run_id: str) -> None:
        super().__init__()
        self._store, self._run_id = store, run_id

    @cached_property
    def _names(self) -> set[str]:
        return self._store.artifacts(self._run_id)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return name in self._names

    def path(self, name: str) -> Path:
        """Return the path on this machine of a file that is there, copied if it is elsewhere."""
        copy = self.copies.path / name
        if not copy.exists():
            self._store.download(self._run_id, name, self.copies.path)
        return copy

    @cached_property
    def is_behind(self) -> bool:
        """Whether whole tables may lack rounds: they are of an earlier interruption, and the run goes on."""
        run = self._store.run(self._run_id)
        return run is not None and run.status == "RUNNING"

    def so_far(self, table: str) -> Path | None:
        """Return the rounds as far as metrics have them, if the table of rounds is missing or behind; else None."""
        if table != "rounds" or (self.has("rounds.parquet") and not self.is_behind):
            return None
        made = self.copies.path / "metrics" / "rounds.parquet"
        if not made.exists():
            rounds = rounds_in_metrics(self._store, self._run_id)
            if not rounds:
                return None
            records.write_all([rounds], made)
        return made


def holds(folder: StoragePath, run_id: str) -> bool:
    """Whether a folder that can be reached from here holds the files of a run in MLflow."""
    try:
        return bool(json_object(folder / "run.json").get("run_id") == run_id)
    except (OSError, ValueError):
        return False


def json_object(file: StoragePath | Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is no such file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged, or holds anything but an object.
    """
    file = storage_path(file)
    content = json_in(file.read_text()) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is not a JSON object")
    if file.name in ENTRIES:
        check_entries(file.name, content)
    return content


def check_has(file: str, found: Container[str], needed: Iterable[str]) -> None:
    """Raise ValueError if a file of a run lacks a column or an entry.

    Args:
        file: Its name.
        found: Its columns or entries.
        needed: Those that it must have.
    """
    missing = [each for each in needed if each not in found]
    if missing:
        raise ValueError(f"{file} has no {missing[0]!r}; a run of this version writes it")


@contextmanager
def reading(run: StoragePath | str) -> Iterator[None]:
    """Name the run, or its folder, in errors that occur while its files are read.

    Raises:
        SettingError: If a file cannot be read.
    """
    try:
        yield
    except SettingError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise _unreadable(run, reason) from None


@contextmanager
def parsing(run: StoragePath | str, file: str) -> Iterator[None]:
    """Name the run and its file in errors that occur while the content of one file is parsed.

    A damaged file makes a parser raise anything, so that every error is one of the file.

    Args:
        run: The run, or its folder.
        file: The name of the file.

    Raises:
        SettingError: If the file cannot be read or is damaged.
    """
    try:
        yield
    except SettingError:
        raise
    except OSError as error:
        raise _unreadable(run, error.strerror or f"{file} is damaged: {reason_of(error)}") from None
    except KeyError as error:
        raise _unreadable(run, f"{file} is damaged: {error} is missing") from None
    except Exception as error:
        reason = reason_of(error)
        raise _unreadable(run, reason if reason.startswith(file) else f"{file} is damaged: {reason}") from None


def _unreadable(run: StoragePath | str, reason: str) -> SettingError:
    return SettingError(f"RUN={str(run)!r} cannot be read: {reason}")
