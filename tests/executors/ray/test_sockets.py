"""The sockets on which the processes of a run listen."""

import ipaddress
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import CONFIGS
from tests.processes import listening_of, mark, ray_daemons_of

METRICS = {44217, 44227}
"""Ports on which Ray's autoscaler and dashboard publish metrics, without a token."""


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_a_local_ray_listens_on_the_loopback_interface_alone(tmp_path):
    command = [sys.executable, "-m", "raysim", "run", str(CONFIGS / "digits.yaml"), "--output", str(tmp_path / "run")]
    for setting in ("executor.kind=ray", "executor.num_actors=1", "rounds=4000", "tracking.uri=none"):
        command += ["--set", setting]
    environment = os.environ | mark(tmp_path) | {"HOME": str(tmp_path)}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 180
        while not list((tmp_path / "run" / "rounds").glob("*")) and run.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        found = listening_of(tmp_path)
    finally:
        run.send_signal(signal.SIGTERM)
        _, printed = run.communicate(timeout=120)
    names = {name for name, _, _ in found}
    assert {"gcs_server", "raylet"} <= names, printed
    assert any("ClientActor" in name for name in names)
    assert {each for each in found if not is_loopback(each[1])} == set()
    assert {port for _, _, port in found} & METRICS == set()
    assert ray_daemons_of(tmp_path) == []
