"""Real servers in processes of their own, on free ports of this machine, for as long as a context lasts."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = Server(
        [sys.executable, "-m", "mlflow", "server", *store, *where],
        f"http://127.0.0.1:{port}/health", folder / "mlflow.log", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )  # fmt: skip
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
