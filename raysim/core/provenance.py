"""Record where a run comes from: user, command, git commit and Ray job."""

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

from raysim.core.storage.defaults import JOB, in_job

COMMIT = "RAYSIM_GIT_COMMIT"
"""Environment variable with the commit from which a job was submitted: the job's own folder has no history."""
DIRTY = "-dirty"


def tags() -> dict[str, str]:
    """Return tags for MLflow's own columns and for what these leave out; unknown values are missing."""
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
    """Return the commit of a folder, with `-dirty` where files were changed since; empty: unknown.

    Args:
        folder: A folder.
        is_code: Whether its files must belong to the commit: those of an environment below a checkout do not.
    """
    git = ["git", "-C", str(folder)]
    try:
        if is_code:
            _output([*git, "ls-files", "--error-unmatch", "."])
        return _output([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    except (OSError, subprocess.SubprocessError):
        return ""


def commit_of_code() -> str:
    """Return raysim's own commit, with `-dirty` where its code was changed since; empty: unknown."""
    folder = Path(__file__).parent.parent
    commit = commit_of(folder, is_code=True).removesuffix(DIRTY)
    try:
        changed = _output(["git", "-C", str(folder), "status", "--porcelain", "."]) if commit else ""
    except (OSError, subprocess.SubprocessError):
        changed = ""
    return commit + (DIRTY if changed else "")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def command() -> str:
    """Return the name of the running program."""
    started = Path(sys.argv[0] if sys.argv and sys.argv[0] else "python")
    return started.parent.name if started.name == "__main__.py" else started.name


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return ""


def _job() -> str:
    """Return the submission id of the Ray job that this process belongs to; empty: no job."""
    try:
        return str(json.loads(os.environ[JOB])["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return ""
