"""What a user calls a run, its output folder or its id in MLflow; and what all who read its files share."""

import json
import os
import re
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError, nearest_first, reason_of
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath

SETTINGS = "config.yaml"
"""A file that every folder of a run holds."""


def folder_of(run: str) -> StoragePath | None:
    """Return the folder that a run's name stands for; none = it is an id.

    Raises:
        SettingError: If it is neither, or the folder holds no run.
    """
    folder = storage_path(run)
    with reading(folder):
        is_folder = folder.is_folder()
        holds_a_run = is_folder and (folder / SETTINGS).is_file()
    if is_folder and not holds_a_run:
        raise SettingError(f"RUN={run!r} holds no run: {SETTINGS} is missing; allowed: the output folder of a run")
    if is_folder:
        return folder
    if re.fullmatch(r"[0-9a-f]{32}", run):
        return None
    raise SettingError(f"RUN={run!r} is neither a folder nor the id of a run in MLflow{nearest(folder)}")


def nearest(folder: StoragePath, files: Sequence[str] = (SETTINGS,)) -> str:
    """Return a hint at the folder that may be meant: one beside it, else the one that a file of a run is in.

    Args:
        folder: What is not there.
        files: A folder that may be meant holds one of them.
    """
    path = folder.path
    if path is None:
        return ""

    def may_be_meant(other: Path) -> bool:
        return any(os.path.isfile(other / file) for file in files)  # some folders must not be looked into

    beside = [each.name for each in path.parent.glob("*/") if may_be_meant(each)]
    found = [path.parent / name for name in nearest_first(path.name, beside)]
    found += [path.parent] if may_be_meant(path.parent) else []
    return f"; nearest folder: {str(found[0])!r}" if found else ""


def holds(folder: StoragePath, run_id: str) -> bool:
    """Whether the files of a run in MLflow are in a folder that can be reached from here."""
    try:
        return bool(json_of(folder / "run.json").get("run_id") == run_id)
    except (OSError, ValueError):
        return False


def settings_of(config: Path, run: str, overrides: Sequence[str] = ()) -> ExperimentSettings:
    """Return the settings that were written down of a run.

    Args:
        config: The file.
        run: What the user calls the run.
        overrides: Settings that replace the file's.

    Raises:
        SettingError: If it cannot be read, or is of a version with other settings.
    """
    try:
        return loader.load(config, tuple(overrides))
    except SettingError as error:
        raise SettingError(f"RUN={run!r}: {error}") from None


def json_of(place: StoragePath) -> dict[str, Any]:
    """Return what a run's file of JSON tells; nothing where there is no such file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged.
    """
    content = json.loads(place.read_text()) if place.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{place.name} is no JSON object")
    return content


def check_told(file: str, there: Container[str], needed: Iterable[str]) -> None:
    """Raise ValueError if a file of a run lacks a column or an entry.

    Args:
        file: Its name.
        there: What it tells.
        needed: What it has to tell.
    """
    lacking = [each for each in needed if each not in there]
    if lacking:
        raise ValueError(f"{file} does not tell {lacking[0]!r}; a run of this version does")


def digests_in(noted: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of data and partition that a run's files tell, or the tags of its MLflow run."""
    split = summary.get("split", {})
    found = {what: noted.get(f"{what}_sha256", split.get(what)) for what in ("data", "partition")}
    return {what: digest for what, digest in found.items() if digest is not None}


@contextmanager
def artifacts(run_id: str, uri: str, names: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Path]:
    """Copy artifacts of a run in MLflow into a folder that lasts as long as the context.

    Raises:
        SettingError: If the store cannot be read, or lacks one that is not optional.
    """
    from raysim.tracking import mlflow_writer  # MLflow takes seconds to import

    with tempfile.TemporaryDirectory() as copied:
        mlflow_writer.download(uri, run_id, names, Path(copied), optional)
        yield Path(copied)


@contextmanager
def reading(run: StoragePath | str) -> Iterator[None]:
    """Name the run, or its folder, in what goes wrong.

    Raises:
        SettingError: If it cannot be read.
    """
    try:
        yield
    except SettingError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise SettingError(f"RUN={str(run)!r} cannot be read: {reason}") from None
