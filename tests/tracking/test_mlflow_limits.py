import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysim.experiment.store import open_tracker
from raysim.tracking.mlflow_limits import LIMITS, limit_waits
from tests.commands import left_with
from tests.conftest import ROOT

READS_RUNS = """
import logging, os, sys
import raysim
raysim.load(sys.argv[1])
try:
    raysim.load("f" * 32, f"sqlite:///{sys.argv[1]}/none.db")
except raysim.SettingError:
    pass
assert "mlflow" in sys.modules
changed = [name for name in os.environ if name.startswith("MLFLOW_HTTP")]
print(changed, logging.getLogger("urllib3.connectionpool").level)
"""


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    without = {name: value for name, value in os.environ.items() if name not in LIMITS}
    monkeypatch.setattr(os, "environ", without)
    return without


def test_limits_that_the_user_has_set_are_kept(environment: dict[str, str]) -> None:
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "7"
    limit_waits()
    assert (MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) == (7, 1)


@pytest.mark.slow
def test_commands_and_tracked_runs_set_the_limits(environment: dict[str, str], tmp_path: Path, capsys) -> None:
    assert left_with("schema") == 0
    assert environment.items() >= LIMITS.items()
    for name in LIMITS:
        del environment[name]
    open_tracker(f"sqlite:///{tmp_path}/mlflow.db", "digits", tmp_path)
    assert environment.items() >= LIMITS.items()


@pytest.mark.slow
def test_a_program_that_reads_runs_keeps_its_own_limits(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    without = {name: value for name, value in os.environ.items() if name not in LIMITS}
    command = [sys.executable, "-c", READS_RUNS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=without)
    assert done.stdout == "[] 0\n", done.stderr
