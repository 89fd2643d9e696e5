"""Where a run comes from: who started it, by which command, at which commit, as which job."""

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

from raysim.core.storage.defaults import JOB, in_job

COMMIT = "RAYSIM_GIT_COMMIT"
"""Environment variable that tells a job the commit it was submitted from: its own folder has no history."""
DIRTY = "-dirty"


def tags() -> dict[str, str]:
    """Return tags that fill MLflow's columns, and what they leave out; what cannot be told is left out."""
    commit = os.environ.get(COMMIT) or commit_of(Path.cwd())
    own = commit_of(Path(__file__).parent, is_code=True)
    found = {
        "mlflow.source.name": command(),
        "mlflow.source.type": "JOB" if in_job() else "LOCAL",
        "mlflow.user": _user(),
        "mlflow.source.git.commit": (commit or own).removesuffix(DIRTY),
        "mlflow.source.git.dirty": str((commit or own).endswith(DIRTY)).lower() if commit or own else "",
        "raysim.git.commit": own,
        "ray_job_id": _job(),
    }
    return {name: value for name, value in found.items() if value}


def commit_of(folder: Path, is_code: bool = False) -> str:
    """Return the commit that a folder is at, with `-dirty` where files were changed since; empty = none is known.

    Args:
        folder: A folder.
        is_code: Whether its files must belong to the commit: an environment below a checkout does not.
    """
    git = ["git", "-C", str(folder)]
    try:
        if is_code:
            _output([*git, "ls-files", "--error-unmatch", "."])
        return _output([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    except (OSError, subprocess.SubprocessError):
        return ""


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def command() -> str:
    """Return the name of the program that was started."""
    started = Path(sys.argv[0] if sys.argv and sys.argv[0] else "python")
    return started.parent.name if started.name == "__main__.py" else started.name


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return ""


def _job() -> str:
    """Return the id under which the Ray job was submitted that this process belongs to."""
    try:
        return str(json.loads(os.environ[JOB])["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return ""
