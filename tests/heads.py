"""A Ray head as `ray start --head` gives it, with a home, ports and a folder of its own, for tests."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

RAY = str(Path(sys.executable).with_name("ray"))
RAYS_OWN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True)
class Head:
    """A running head: its two addresses, its home and its folder, and what a process needs to talk to it."""

    dashboard: str
    address: str
    home: Path
    sessions: Path
    token: str

    def environment(self, **more: str) -> dict[str, str]:
        return environment(self.home) | more


def environment(home: Path) -> dict[str, str]:
    """This process's environment with another home, this checkout first, and nothing of another Ray."""
    kept = {name: value for name, value in os.environ.items() if name not in RAYS_OWN}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def head(with_token: bool, num_cpus: int = 2) -> Iterator[Head]:
    """Start a head and stop it, all of its processes with it."""
    folder = Path(tempfile.mkdtemp(prefix="rs", dir="/tmp"))  # short: Ray's socket paths have a limit
    home = folder / "home"
    home.mkdir()
    token = ""
    if with_token:
        made = [RAY, "get-auth-token", "--generate"]
        subprocess.run(made, env=environment(home), capture_output=True, check=True)
        token = (home / ".ray" / "auth_token").read_text().strip()
    gcs, dashboard, client = free_ports(3)
    command = [
        RAY, "start", "--head", "--block", "--port", str(gcs), "--dashboard-host", "127.0.0.1",
        "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client), "--num-cpus", str(num_cpus),
        "--dashboard-agent-listen-port", "0", "--min-worker-port", "0", "--max-worker-port", "0",
        "--node-ip-address", "127.0.0.1", "--temp-dir", str(folder / "t"), "--disable-usage-stats",
        "--object-store-memory", str(200_000_000),
    ]  # fmt: skip
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(command, env=environment(home), stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(url, process, folder / "head.log")
        yield Head(url, f"127.0.0.1:{gcs}", home, folder / "t", token)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until the job server answers; one that asks for a token answers, too."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"no head came up: {log.read_text()}")
