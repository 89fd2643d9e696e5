import json
import subprocess
import sys

import pytest

from tests.heads import environment

LOCAL = """
import json, os, urllib.error, urllib.request
from pathlib import Path
import ray
from raysim.executors.ray import tokens
from raysim.executors.ray.cluster import connect

session = connect(1, None, {host!r})
context = ray.get_runtime_context()
url = session["webui_url"]
try:
    status = url and urllib.request.urlopen(f"http://{{url}}/api/jobs/").status
except urllib.error.HTTPError as error:
    status = error.code
token = Path.home() / ".ray" / "auth_token"
print(json.dumps([tokens.is_demanded(context.gcs_address), url, status, oct(token.stat().st_mode & 0o777)]))
ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("host", [pytest.param(None, marks=pytest.mark.long), "127.0.0.1"])
def test_a_local_ray_wants_a_token_and_shows_a_dashboard_only_where_asked(tmp_path, host) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCAL.format(host=host)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asked, url, status, mode = json.loads(done.stdout.splitlines()[-1])
    assert asked
    assert mode == "0o600"
    assert (tmp_path / ".ray" / "auth_token").read_text() not in done.stdout + done.stderr
    if host is None:
        assert not url
    else:
        assert url.startswith("127.0.0.1:")
        assert status == 401
        assert f"dashboard: http://{url}" in done.stderr
