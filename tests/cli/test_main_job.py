"""The main job as a user runs it: command line, last lines, exit code, and no files or processes that remain."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from raysim.simulation import checkpoint
from tests.conftest import CONFIGS, ROOT
from tests.stores import store_in

SHARED_DATA = ROOT.parent / "shared" / "data"


def command(folder: Path, config: str, *arguments: str) -> list[str]:
    store = ["--set", f"tracking.uri={store_in(folder)}", "--output", str(folder / "out")]
    return [sys.executable, "-m", "raysim", "run", str(CONFIGS / config), *store, *arguments]


def ray_processes() -> set[str]:
    found = subprocess.run(["pgrep", "-f", "raylet|gcs_server"], capture_output=True, text=True, check=False)
    return set(found.stdout.split())


def import_s() -> float:
    """Seconds to import the libraries of a run in a new process: 3 to 4 on a machine that has nothing else to do."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import mlflow, ray, torch"], check=True)
    return time.monotonic() - started


@pytest.mark.ray
@pytest.mark.long
def test_the_embedded_default_ends_within_a_minute_at_96_percent(tmp_path: Path) -> None:
    before, started = ray_processes(), time.monotonic()
    done = subprocess.run(command(tmp_path, "digits.yaml"), capture_output=True, text=True, cwd=ROOT, check=False)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["accuracy"] >= 0.96
    assert seconds <= max(60.0, 8 * import_s()), f"{seconds:.1f} s"
    lines = done.stdout.splitlines()
    starts = ("run ", "global test accuracy", "mean pruning ratio", "bytes against FedAvg", "FLOPs against FedAvg",
              "simulated time", "wall time", "open in MLflow")  # fmt: skip
    assert all(line.startswith(start) for line, start in zip(lines[-9:], starts, strict=False))
    assert "round 50/50" in done.stderr
    assert "Traceback" not in done.stderr
    assert ray_processes() <= before


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.skipif(not (SHARED_DATA / "MNIST").is_dir(), reason="no MNIST beside the checkout (../shared/data)")
def test_mnist_reaches_97_percent_in_30_rounds(tmp_path: Path) -> None:
    arguments = ["--set", f"data.root={SHARED_DATA}", "--set", "data.download=false", "--json"]
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
@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (signal.SIGINT, 130, "stopped after round"),
        pytest.param(signal.SIGTERM, 143, "raysim: interrupted", marks=pytest.mark.long),
    ],
)
def test_an_interrupted_run_is_killed_in_mlflow_and_keeps_its_checkpoint(
    sent: int, code: int, said: str, tmp_path: Path
) -> None:
    before = ray_processes()
    process = subprocess.Popen(
        command(tmp_path, "digits.yaml", "--set", "rounds=500"),
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
    send = os.killpg if sent == signal.SIGINT else os.kill  # a terminal's Ctrl-C reaches the whole group
    send(process.pid, sent)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert said in errors
    assert "Traceback" not in errors
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "KILLED"
    saved = checkpoint.saved_in(tmp_path / "out" / "checkpoints")
    assert checkpoint.load(saved[-1]).round >= 3
    assert output == ""
    assert ray_processes() <= before


@pytest.mark.ray
@pytest.mark.long
def test_training_on_ray_equals_training_in_process(tmp_path: Path) -> None:
    digests = set()
    for place, kind in enumerate(("ray", "in-process")):
        (tmp_path / str(place)).mkdir()
        arguments = ["--set", f"executor.kind={kind}", "--set", "rounds=5", "--json"]
        done = subprocess.run(
            command(tmp_path / str(place), "digits.yaml", *arguments),
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        digests.add(json.loads(done.stdout.splitlines()[-1])["params_sha256"])
    assert len(digests) == 1
