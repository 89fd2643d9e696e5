"""Choose the default folder of runs; in a Ray job it is outside the working folder, which is deleted with the job."""

import os
from pathlib import Path

from raysim.core.errors import SettingError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this environment variable in the process that a job starts."""


def in_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return JOB in os.environ


def default_folder() -> Path:
    """Return `runs` in the working directory, or in a job `raysim/runs` in the home directory."""
    return Path.home() / "raysim" / "runs" if in_job() else Path("runs")


def check_stays(setting: str, value: str, path: Path, allowed: str) -> None:
    """Refuse a relative path in a job.

    Raises:
        SettingError: If the path would be deleted with the job's working folder.
    """
    if in_job() and not path.is_absolute():
        raise SettingError(
            f"{setting}={value!r} is not allowed in a job, since its working folder is deleted; allowed: {allowed}"
        )
