"""Choose the default folder of runs; in a Ray job it is outside the working folder, which is deleted with the job."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from raysim.core.errors import SettingError

Given = TypeVar("Given")

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this environment variable in the process that a job starts."""


def in_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return JOB in os.environ


def default_folder() -> Path:
    """Return `runs` in the working directory, or in a job `raysim/runs` in the home directory."""
    return Path.home() / "raysim" / "runs" if in_job() else Path("runs")


@contextmanager
def folder_for(given: Given | None, name: str) -> Iterator[Given | Path]:
    """Return a context with the folder that the user gave, or with a new one in the default folder.

    A new folder is this process's alone: of two that begin in the same second one gets a number. If it is still empty
    at the end of the context, it is removed.

    Args:
        given: The user's; None: a new one.
        name: Begins the name of a new one; the time follows.

    Raises:
        SettingError: If a new one cannot be made.
    """
    if given is not None:
        yield given
        return
    try:
        folder = new_folder(default_folder() / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    except OSError as error:
        raise SettingError(
            f"{str(default_folder())!r} cannot be made: {error.strerror}; allowed: --output with another folder"
        ) from None
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()
            folder.parent.rmdir()


def new_folder(wanted: Path) -> Path:
    """Make a folder, under another name with a number where there is one already; return its path."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def check_stays(setting: str, value: str, path: Path, allowed: str) -> None:
    """Refuse a relative path in a job.

    Raises:
        SettingError: If the path would be deleted with the job's working folder.
    """
    if in_job() and not path.is_absolute():
        raise SettingError(
            f"{setting}={value!r} is not allowed in a job, since its working folder is deleted; allowed: {allowed}"
        )
