"""Find the folder of a run from the name that a user gives: a path, a URI, or an id in MLflow."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from raysim.core.errors import SettingError, nearest_first
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.tracking.run_files import SETTINGS, reading


def folder_of(run: str) -> StoragePath | None:
    """Return the folder that a name stands for; None if the name is the id of a run in MLflow.

    Raises:
        SettingError: If the name is neither a folder nor an id, or the folder holds no run.
    """
    folder = storage_path(run)
    with reading(folder):
        is_folder = folder.is_folder()
        holds_a_run = is_folder and (folder / SETTINGS).is_file()
    if is_folder and not holds_a_run:
        raise SettingError(f"RUN={run!r} holds no run: {SETTINGS} is missing; allowed: the output folder of a run")
    if is_folder:
        return folder
    if is_id(run):
        return None
    raise SettingError(f"RUN={run!r} is neither a folder nor the id of a run in MLflow{nearest(folder)}")


def is_id(name: str) -> bool:
    """Whether a name has the form of an id in MLflow."""
    return re.fullmatch(r"[0-9a-f]{32}", name) is not None


def nearest(folder: StoragePath, files: Sequence[str] = (SETTINGS,)) -> str:
    """Return a hint at the folder that the user may mean: one beside the missing one, else the one it would be in.

    Args:
        folder: The folder that does not exist.
        files: Only folders with one of these files are suggested.
    """
    path = folder.path
    if path is None:
        return ""

    def is_likely(other: Path) -> bool:
        return any(os.path.isfile(other / file) for file in files)  # False for folders that may not be read

    beside = [each.name for each in path.parent.glob("*/") if is_likely(each)]
    found = [path.parent / name for name in nearest_first(path.name, beside)]
    found += [path.parent] if is_likely(path.parent) else []
    return f"; nearest folder: {str(found[0])!r}" if found else ""
