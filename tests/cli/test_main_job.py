"""The main job as a user runs it: command line, last lines, exit code, and no files or processes that remain."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from raysim.simulation import checkpoint
from tests.conftest import CONFIGS, ROOT
from tests.stores import store_in

SHARED_DATA = ROOT.parent / "shared" / "data"


def command(folder: Path, config: str, *arguments: str) -> list[str]:
    store = ["--set", f"tracking.uri={store_in(folder)}", "--output", str(folder / "out")]
    return [sys.executable, "-m", "raysim", "run", str(CONFIGS / config), *store, *arguments]


def marked(folder: Path) -> dict[str, str]:
    """An environment by which `processes_of` finds all that a command has started."""
    return os.environ | {"STARTED_BY": str(folder)}


def processes_of(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("STARTED_BY") == str(folder):
                found.append(process.name())
    return found


def import_s() -> float:
    """Seconds to import the libraries of a run in a new process: 3 to 4 on a machine that has nothing else to do."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import mlflow, ray, torch"], check=True)
    return time.monotonic() - started


@pytest.mark.ray
@pytest.mark.long
def test_the_embedded_default_ends_within_a_minute_at_96_percent(tmp_path: Path) -> None:
    before, started = import_s(), time.monotonic()
    done = subprocess.run(
        command(tmp_path, "digits.yaml"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=marked(tmp_path),
        check=False,
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["accuracy"] >= 0.96
    assert seconds <= max(60.0, 12 * max(before, import_s())), f"{seconds:.1f} s"
    lines = done.stdout.splitlines()
    starts = ("run ", "global test accuracy", "mean pruning ratio", "bytes against FedAvg", "FLOPs against FedAvg",
              "simulated time", "wall time", "open in MLflow")  # fmt: skip
    assert all(line.startswith(start) for line, start in zip(lines[-9:], starts, strict=False))
    assert "round 50/50" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(tmp_path) == []


@pytest.mark.long
@pytest.mark.skipif(not (SHARED_DATA / "MNIST").is_dir(), reason="no MNIST beside the checkout (../shared/data)")
def test_mnist_reaches_97_percent_in_30_rounds(tmp_path: Path) -> None:
    given = (f"data.root={SHARED_DATA}", "data.download=false", "executor.kind=in-process")
    arguments = [part for setting in given for part in ("--set", setting)] + ["--json"]
    done = subprocess.run(
        command(tmp_path, "mnist.yaml", *arguments), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["rounds"] == 30
    assert summary["accuracy"] >= 0.97
    assert summary["bytes_percent_of_fedavg"] < 60


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_run_is_killed_in_mlflow_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "digits.yaml", "--set", "rounds=500"),
        env=marked(tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 3/"):
            break
    assert "raylet" in processes_of(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped after round" in errors
    assert "Traceback" not in errors
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "KILLED"
    saved = checkpoint.saved_in(tmp_path / "out" / "checkpoints")
    assert checkpoint.load(saved[-1]).round >= 3
    assert output == ""
    assert processes_of(tmp_path) == []
