"""Submits a run to a Ray cluster as a job, follows it, and says how it ended."""

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import aiohttp
from ray._private.runtime_env import packaging
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raysim.core import plugins, provenance
from raysim.core.errors import RunFailedError, SettingError, reason_of
from raysim.executors.ray import cluster as tokens

OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables that Ray puts above an address it is given."""
PATIENCE_S = 60.0
"""How long a job server may be away while a job is followed."""
POLL_S = 1.0
NAMING_FILES = ("path", "root", "weights", "fedscale", "availability")
"""Settings whose values may be files."""


@dataclass(frozen=True, slots=True)
class Request:
    """A run to submit.

    Attributes:
        address: The head's dashboard, `http://HOST:8265`.
        config: The experiment file.
        arguments: What follows CONFIG on the command line of `raysim run`.
        folder: What the job takes along, its working directory there; none = the experiment file alone.
        variables: The job's environment variables.
    """

    address: str
    config: Path
    arguments: Sequence[str]
    folder: Path | None
    variables: dict[str, str]

    def entrypoint(self) -> str:
        """Return the command the job runs in its working directory."""
        within = self.config.name if self.folder is None else str(_within(self.folder, self.config))
        return shlex.join(["python", "-m", "raysim", "run", within, *self.arguments])


class Job:
    """A job on a cluster."""

    def __init__(self, client: JobSubmissionClient, id: str, address: str) -> None:
        self._client, self.id, self.address = client, id, address
        self._shown = 0

    def follow(self, write: Callable[[str], Any]) -> JobDetails:
        """Write what the job prints until it ends.

        A connection that is lost is taken up again where it broke off.

        Raises:
            RunFailedError: If the job server stays away for a minute; the job may go on.
        """
        answered = time.monotonic()
        while True:
            try:
                asyncio.run(self._tail(write))
                details = self._client.get_job_info(self.id)
                answered = time.monotonic()
                if details.status.is_terminal():
                    write(self._client.get_job_logs(self.id)[self._shown :])
                    return details
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                if time.monotonic() - answered > PATIENCE_S:
                    cause = f"job {self.id}: {self.address} has not answered for {PATIENCE_S:.0f} s ({error})"
                    raise RunFailedError(0, -1, f"{cause}; the job may go on: {self.ways()}") from None
            time.sleep(POLL_S)

    async def _tail(self, write: Callable[[str], Any]) -> None:
        """Write what has not been shown of the log, until its connection ends; Ray sends it from its beginning."""
        place = 0
        async for text in self._client.tail_job_logs(self.id):
            write(text[max(0, self._shown - place) :])
            place += len(text)
            self._shown = max(self._shown, place)

    def ways(self) -> str:
        """Say how the job is followed and stopped from a shell."""
        followed, stopped = f"ray job logs --follow {self.id}", f"ray job stop {self.id}"
        return f"`{followed} --address {self.address}`, `{stopped} --address {self.address}`"


def exit_code(details: JobDetails) -> int:
    """Return the exit code of a job that has ended: its own where it left one, else 1 for any failure."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    own = details.driver_exit_code
    return own if own is not None and 0 < own < 256 else 1


def check_files(settings: Mapping[str, str]) -> None:
    """Refuse settings that name a file or a module of this working directory, which a job does not see by itself.

    Args:
        settings: Their values by dotted name.

    Raises:
        SettingError: If there is such a file.
    """
    for name, value in settings.items():
        is_code = plugins.is_dotted(value) and name.rpartition(".")[2] not in ("uri", "address")
        top = value.partition(":")[0].partition(".")[0] if is_code else ""
        places = [Path(top), Path(f"{top}.py")] if is_code else [Path(value)]
        if not is_code and name.rpartition(".")[2] not in NAMING_FILES:
            continue
        if any(not place.is_absolute() and place.exists() for place in places):
            raise SettingError(
                f"{name}={value!r} names what lies in this directory, and a job has a directory of its own; allowed: "
                "--working-dir=FOLDER to send a folder along, or a path that the cluster's machines have"
            )


def submit(request: Request) -> Job:
    """Send a run to a cluster.

    Raises:
        SettingError: If the address does not answer, refuses the token, or what is to be sent is too large.
    """
    entrypoint = request.entrypoint()
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "package.zip"
        pack(request.folder or _alone(request.config, Path(scratch)), archive, "--working-dir")
        environment = {
            "working_dir": str(archive),
            "env_vars": {"PYTHONUNBUFFERED": "1", **_commit(request), **request.variables},
        }
        client = connect(request.address)
        return Job(client, client.submit_job(entrypoint=entrypoint, runtime_env=environment), request.address)


def _commit(request: Request) -> dict[str, str]:
    """Return the commit that is sent, for the run's tags: there is no history in a job's folder."""
    commit = provenance.commit_of(request.folder or request.config.absolute().parent)
    return {provenance.COMMIT: commit} if commit else {}


def connect(address: str) -> JobSubmissionClient:
    """Reach the job server at an address.

    Raises:
        SettingError: If it does not answer there, or does not take the token.
    """
    if not address.startswith(("http://", "https://")):
        raise SettingError(f"--address={address!r} is not allowed; allowed: the head's dashboard, http://HOST:8265")
    tokens.use_one()
    for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    aside = {name: os.environ.pop(name) for name in OVERRIDING if name in os.environ}
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise SettingError(f"--address={address!r} refuses: {reason_of(error)}; {tokens.WAY_IN}") from None
    except Exception as error:  # no server, another server, a server of another age
        raise SettingError(f"--address={address!r} cannot be reached: {reason_of(error)}") from None
    finally:
        os.environ.update(aside)


def _alone(config: Path, scratch: Path) -> Path:
    folder = scratch / "folder"
    folder.mkdir()
    (folder / config.name).write_bytes(config.read_bytes())
    return folder


def _within(folder: Path, config: Path) -> Path:
    try:
        return config.resolve().relative_to(folder.resolve())
    except ValueError:
        raise SettingError(
            f"CONFIG={str(config)!r} is not in --working-dir={str(folder)!r}; allowed: a file of that folder"
        ) from None


MIB = 1024 * 1024
LIMIT_BYTES = 100 * MIB
"""What Ray's job server takes in one request."""
EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", "*.egg-info", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".ipynb_checkpoints", "node_modules", "runs", "mlruns", "mlflow.db",
)  # fmt: skip
"""What stays behind, beside all that `.gitignore` and `.rayignore` name."""
NAMED = 5


def pack(folder: Path, archive: Path, setting: str) -> None:
    """Write what a job needs of a folder into an archive.

    Args:
        folder: The folder.
        archive: Where the archive goes, outside the folder.
        setting: Where the folder was given, for errors.

    Raises:
        SettingError: If it would be larger than Ray takes; the message names what is largest in the folder.
    """
    files = kept_files(folder)
    with ZipFile(archive, "w", ZIP_DEFLATED) as packed:
        for file in files:
            packed.write(file, file.relative_to(folder))
            if archive.stat().st_size >= LIMIT_BYTES:
                raise SettingError(
                    f"{setting}={str(folder)!r} is too large to be sent: more than {LIMIT_BYTES // MIB} MiB packed; "
                    f"largest: {_largest(folder, files)}; name what the job does not need in .rayignore"
                )


def kept_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are sent, sorted; Ray's own reading of the ignore files."""
    found: list[Path] = []
    ignored = packaging._get_excludes(folder, list(EXCLUDES))
    by_git = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    quiet = logging.getLogger(f"{__name__}.quiet")
    quiet.setLevel(logging.ERROR)
    packaging._dir_travel(folder, [ignored], found.append, include_gitignore=by_git, logger=quiet)
    return sorted(file for file in found if file.is_file())


def _largest(folder: Path, files: list[Path]) -> str:
    sizes: dict[str, int] = {}
    for file in files:
        entry = file.relative_to(folder).parts[0]
        sizes[entry] = sizes.get(entry, 0) + file.stat().st_size
    largest = sorted(sizes, key=lambda entry: -sizes[entry])[:NAMED]
    return ", ".join(f"{entry} ({sizes[entry] / MIB:.1f} MiB)" for entry in largest)
