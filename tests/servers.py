"""Real servers in processes of their own, on free ports of this machine, for as long as a context lasts."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PATIENCE_S = 120


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class Server:
    """A server that can be stopped and started again at the same port."""

    def __init__(self, command: list[str], url: str, log: Path, **environment: str) -> None:
        self._command, self._log, self._environment = command, log, os.environ | environment
        self.url = url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        until = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < until, self._log.read_text()[-3000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path, store: str = "", *options: str) -> Iterator[Server]:
    """A tracking server with its database in the folder, or behind the URI of a store."""
    port = free_port()
    store = store or f"sqlite:///{folder}/server.db"
    options = ("--backend-store-uri", store, "--artifacts-destination", f"{folder}/artifacts", *options)
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = Server(
        [sys.executable, "-m", "mlflow", "server", *options, *where],
        f"http://127.0.0.1:{port}/health",
        folder / "mlflow.log",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """A server that speaks S3: moto's, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = Server(command, f"http://127.0.0.1:{port}/moto-api/", folder / "s3.log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def postgres_programs() -> dict[str, str]:
    """Where PostgreSQL's programs are; skips where they are not: Debian has them outside of PATH."""
    path = os.pathsep.join([os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))])
    found = {name: shutil.which(name, path=path) for name in ("initdb", "pg_ctl")}
    missing = [name for name, program in found.items() if program is None]
    if missing:
        pytest.skip(f"PostgreSQL's {' and '.join(missing)} are not installed (Debian: apt-get install postgresql)")
    return {name: str(program) for name, program in found.items()}


@contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL of our own on a free port; yields the URI of its database. It refuses to run as root."""
    programs, user = postgres_programs(), "postgres" if os.geteuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp")), free_port()  # short: socket paths have a limit
    if user is not None:
        shutil.chown(folder, user)
    cluster, log = folder / "cluster", folder / "log"

    def call(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [programs[program], "-D", str(cluster), *arguments],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + (log.read_text() if log.is_file() else "")

    call("initdb", "--username=me", "--auth=trust", "--encoding=UTF8", "--no-sync")
    try:
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        call("pg_ctl", "start", "--wait", f"--timeout={PATIENCE_S}", "--log", str(log), "--options", options)
        yield f"postgresql+psycopg2://me@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "stop", "--mode=immediate")
        shutil.rmtree(folder, ignore_errors=True)
