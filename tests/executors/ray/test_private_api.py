"""Ray's private API, pinned for the version that raysim is tested with.

After an upgrade of Ray, look at what `raysim/executors/ray/private_api.py` says of each part, see whether Ray has a
public way by now, mend what these tests find, and then change `CHECKED_WITH`.
"""

import inspect
import re

import pytest
import ray
from ray._raylet import AuthenticationMode, Config, get_authentication_mode

from raysim.executors.ray import private_api
from tests.conftest import ROOT

CHECKED_WITH = "2.60.0"
PRIVATE = re.compile(r"\bray\._|\bray\.core\b|\bfrom ray import _|\binternal_kv\b")


def test_ray_has_the_version_that_its_private_parts_were_checked_with():
    assert ray.__version__ == CHECKED_WITH
    assert f"ray=={CHECKED_WITH}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_only_one_module_uses_the_private_api():
    sources = [path for folder in ("raysim", "jobs") for path in (ROOT / folder).rglob("*.py")]
    users = [path.name for path in sources if PRIVATE.search(path.read_text(encoding="utf-8"))]
    assert users == ["private_api.py"]


def test_ray_prints_lost_actors_unless_its_switch_is_off(monkeypatch, capsys):
    monkeypatch.setattr(ray._private.worker, "_worker_logs_enabled", True)
    line = {"lines": ["an actor was lost"], "pid": "raylet", "ip": "", "localhost": ""}
    ray._private.worker.print_worker_logs(line, print_file=None)
    assert "an actor was lost" in capsys.readouterr().out
    private_api.silence_standard_output()
    ray._private.worker.print_worker_logs(line, print_file=None)
    assert capsys.readouterr().out == ""
    assert "print_worker_logs" in inspect.getsource(ray._private.worker.print_to_stdstream)
    assert "print_to_stdstream" in inspect.getsource(ray._private.worker.listen_error_messages)


def test_ray_reads_the_mode_of_tokens_again(monkeypatch):
    before = get_authentication_mode()
    try:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        private_api.read_auth_mode_again()
        assert get_authentication_mode() == AuthenticationMode.TOKEN
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert get_authentication_mode() == AuthenticationMode.TOKEN, "Ray reads it again by itself"
        private_api.read_auth_mode_again()
        assert get_authentication_mode() == AuthenticationMode.DISABLED
    finally:
        monkeypatch.setenv("RAY_AUTH_MODE", "token" if before == AuthenticationMode.TOKEN else "disabled")
        Config.initialize("")


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_demands_a_token(local_ray):
    assert private_api.demands_token(ray.get_runtime_context().gcs_address, 10.0)


def test_an_address_without_a_cluster_demands_no_token():
    assert not private_api.demands_token("127.0.0.1:1", 1.0)
