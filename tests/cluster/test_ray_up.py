"""cluster.yaml as it is shipped, on machines of this machine's own making: up, a job across both, down."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import hosts
from tests.cluster.ray_up import SETTINGS
from tests.conftest import CONFIGS, ROOT

REASON = hosts.missing() or (
    "`pip install --editable` without a network needs hatchling and editables here"
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("editables") is None
    else "this Python is not of a virtual environment, which machines share" * (sys.prefix == sys.base_prefix)
)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.skipif(bool(REASON), reason=REASON or "-")
def test_the_cluster_file_brings_up_a_cluster_with_a_token_that_runs_jobs_everywhere(tmp_path: Path) -> None:
    command = hosts.in_namespaces(sys.executable, "-m", "tests.cluster.ray_up", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-6000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["while_up"] == [2, 1]
    assert seen["token_modes"] == ["0o600", "0o600"]
    assert seen["same_token"] == [True, True]
    assert re.search(r"^ 2 local.cluster.node", seen["status"], re.MULTILINE)
    assert seen["placed"] == ["client actors: 2 on head, 2 on worker"]
    assert seen["summary"]["params_sha256"] == digest_here(tmp_path)
    assert seen["token_in_logs"] == ["", ""]
    assert seen["token_told"] is False
    assert seen["head_after_down"] == 0


def digest_here(folder: Path) -> str:
    """What the same experiment comes to in one process."""
    given = (*SETTINGS, "executor.kind=in-process", f"tracking.uri=sqlite:///{folder}/m.db")
    sets = [part for setting in given for part in ("--set", setting)]
    start = [sys.executable, "-m", "raysim", "run", str(CONFIGS / "digits.yaml"), "--json"]
    done = subprocess.run(
        [*start, *sets, "--output", str(folder / "here")], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])["params_sha256"]
