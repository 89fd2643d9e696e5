"""Submit a run to a Ray cluster as a job, follow it, and return how it ended."""

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raysim.core import plugins, provenance
from raysim.core.errors import RunFailedError, SettingError, reason_of
from raysim.core.retry import retry
from raysim.executors.ray import tokens
from raysim.executors.ray.job_package import pack

OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Environment variables that Ray prefers to the address that it is given."""
UNREACHABLE_S = 60.0
"""Seconds for which a job server may be unreachable while a job is followed."""
UNREACHABLE = (RuntimeError, OSError, aiohttp.ClientError)
"""Errors that Ray's job client raises if the job server is unreachable."""
POLL_S = 1.0
NAMING_FILES = ("path", "root", "weights", "fedscale", "availability")
"""Last names of settings whose values may be files."""


@dataclass(frozen=True, slots=True)
class Request:
    """A run or a study to submit.

    Attributes:
        address: The head's dashboard, `http://HOST:8265`.
        command: `run` or `study`.
        config: The experiment file, or the study's folder.
        arguments: The rest of the command line.
        folder: Folder to send, the job's working directory; None: the experiment file alone.
        variables: The job's environment variables.
    """

    address: str
    command: Literal["run", "study"]
    config: Path
    arguments: Sequence[str]
    folder: Path | None
    variables: dict[str, str]

    def entrypoint(self) -> str:
        """Return the command the job runs in its working directory."""
        within = self.config.name if self.folder is None else str(_within(self.folder, self.config))
        return shlex.join(["python", "-m", "raysim", self.command, within, *self.arguments])


class Job:
    """A job on a cluster."""

    def __init__(self, client: JobSubmissionClient, id: str, address: str) -> None:
        self._client, self.id, self.address = client, id, address
        self._shown = 0

    def follow(self, write: Callable[[str], Any]) -> JobDetails:
        """Write what the job prints until it ends; a lost connection is resumed where it broke off.

        Raises:
            RunFailedError: If the job server is unreachable for a minute; the job may still be running.
        """
        while True:
            with suppress(*UNREACHABLE):  # the connection may break after hours; whether the server answers decides
                asyncio.run(self._tail(write))
            try:
                details = retry(lambda: self._client.get_job_info(self.id), UNREACHABLE, UNREACHABLE_S)
                if details.status.is_terminal():
                    log = retry(lambda: self._client.get_job_logs(self.id), UNREACHABLE, UNREACHABLE_S)
                    write(log[self._shown :])
                    return details
            except UNREACHABLE as error:
                cause = f"job {self.id}: {self.address} has not answered for {UNREACHABLE_S:.0f} s ({error})"
                raise RunFailedError(0, -1, f"{cause}; the job may still be running: {self.commands()}") from None
            time.sleep(POLL_S)

    async def _tail(self, write: Callable[[str], Any]) -> None:
        """Write the rest of the log until the connection ends; Ray sends it from its start."""
        position = 0
        async for text in self._client.tail_job_logs(self.id):
            write(text[max(0, self._shown - position) :])
            position += len(text)
            self._shown = max(self._shown, position)

    def commands(self) -> str:
        """Return the shell commands that follow and stop the job."""
        followed, stopped = f"ray job logs --follow {self.id}", f"ray job stop {self.id}"
        return f"`{followed} --address {self.address}`, `{stopped} --address {self.address}`"


def exit_code(details: JobDetails) -> int:
    """Return the exit code of a job that has ended: its own where it left one, else 1 for any failure."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    own = details.driver_exit_code
    return own if own is not None and 0 < own < 256 else 1


def check_files(settings: Mapping[str, str]) -> None:
    """Refuse settings that name a file or a module of this working directory, which a job does not have.

    Args:
        settings: Values by dotted name.

    Raises:
        SettingError: If there is such a file.
    """
    for name, value in settings.items():
        is_code = plugins.is_dotted(value) and name.rpartition(".")[2] not in ("uri", "address")
        top = value.partition(":")[0].partition(".")[0] if is_code else ""
        paths = [Path(top), Path(f"{top}.py")] if is_code else [Path(value)]
        if not is_code and name.rpartition(".")[2] not in NAMING_FILES:
            continue
        if any(not path.is_absolute() and path.exists() for path in paths):
            raise SettingError(
                f"{name}={value!r} names a file or folder of this directory, and a job has a directory of its own; "
                "allowed: --working-dir=FOLDER to send a folder along, or a path that the cluster's machines have"
            )


def submit(request: Request) -> Job:
    """Send a run or a study to a cluster.

    Raises:
        SettingError: If the address does not answer or refuses the token, or if the files are too large to be sent.
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
    """Return the commit of the sent files, for the run's tags: a job's folder has no history."""
    commit = provenance.commit_of(request.folder or request.config.absolute().parent)
    return {provenance.COMMIT: commit} if commit else {}


def connect(address: str) -> JobSubmissionClient:
    """Connect to the job server at an address.

    Raises:
        SettingError: If no job server answers, or if it refuses the token.
    """
    if not address.startswith(("http://", "https://")):
        raise SettingError(f"--address={address!r} is not allowed; allowed: the head's dashboard, http://HOST:8265")
    tokens.send_token()
    for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    aside = {name: os.environ.pop(name) for name in OVERRIDING if name in os.environ}
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        reason = f"{reason_of(error)}; {tokens.WHERE_RAY_LOOKS}"
        raise SettingError(f"--address={address!r} refuses the connection: {reason}") from None
    except Exception as error:  # no server, another server, another version
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
