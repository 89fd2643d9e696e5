"""The main job as a user runs it: command line, last lines, exit code, and no files or processes that remain."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CONFIGS, ROOT
from tests.processes import mark, ray_daemons_of
from tests.stores import store_in

SHARED_DATA = ROOT.parent / "shared" / "data"


def command(folder: Path, config: str, *arguments: str) -> list[str]:
    store = ["--set", f"tracking.uri={store_in(folder)}", "--output", str(folder / "out")]
    return [sys.executable, "-m", "raysim", "run", str(CONFIGS / config), *store, *arguments]


def import_s() -> float:
    """Seconds to import the libraries of a run in a new process: 3 to 4 on a machine that has nothing else to do."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import mlflow, ray, torch"], check=True)
    return time.monotonic() - started


@pytest.mark.ray
@pytest.mark.alone
def test_the_embedded_default_ends_within_a_minute_at_96_percent(tmp_path: Path) -> None:
    before, started = import_s(), time.monotonic()
    done = subprocess.run(
        command(tmp_path, "digits.yaml"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | mark(tmp_path),
        check=False,
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["accuracy"] >= 0.96
    assert seconds <= max(60.0, 10 * max(before, import_s())), f"{seconds:.1f} s"
    lines = done.stdout.splitlines()
    against = ("bytes against FedAvg", "FLOPs against FedAvg", "time against FedAvg")
    scores = ("global test accuracy", "cut to each width", "mean pruning ratio")
    starts = ("run ", *scores, *against, "simulated time", "wall time", "open in MLflow")
    said = lines[-len(starts) - 1 : -1]
    assert all(line.startswith(start) for line, start in zip(said, starts, strict=True)), lines
    assert "round 50/50" in done.stderr
    assert "Traceback" not in done.stderr
    assert ray_daemons_of(tmp_path) == []


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
