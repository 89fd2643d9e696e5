"""Runs whose driver process or driver actor dies, receives SIGTERM, or cannot write its files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from raysim.core import tensors
from raysim.executors.ray.failure_policy import Failure, Kind
from raysim.executors.ray.runner import RayRunner
from raysim.simulation import checkpoint
from raysim.simulation.build import build_scenario
from raysim.simulation.state import Start, Storage
from tests.conftest import CONFIGS, ROOT, TINY, tiny_settings
from tests.experiment.test_resume import assert_same_run, played
from tests.processes import mark, ray_daemons_of
from tests.stores import status_of, store_in

ROUNDS = 40
"""So many that what is lost in an early round is lost before the run ends."""
LONG = (f"rounds={ROUNDS}", "checkpoint.every=2", "data.max_train_examples=200", "evaluation.max_examples=50")
ON_RAY = ("executor.kind=ray", "executor.num_actors=1")


def raysim(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    return python("-m", "raysim", *arguments, **variables)


def python(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    command, environment = [sys.executable, *arguments], os.environ | variables
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


def run_of(folder: Path | str, *overrides: str) -> list[str]:
    given = (*TINY, *LONG, *overrides)
    settings = [part for override in given for part in ("--set", override)]
    return ["run", str(CONFIGS / "digits.yaml"), *settings, "--output", str(folder)]


def until(process: subprocess.Popen[str], line: str) -> str:
    """Read what a process says up to a line that begins so; return all of it."""
    told = []
    assert process.stderr is not None
    for each in process.stderr:
        told.append(each)
        if each.startswith(line):
            return "".join(told)
    raise AssertionError(f"{line!r} was never said:\n{''.join(told)[-3000:]}")


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors[-3000:]
    return output, errors


def summary_in(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return played(folder / "out", tiny_settings(*LONG, f"tracking.uri={store_in(folder)}"))


@pytest.mark.ray
@pytest.mark.long
def test_a_run_that_is_terminated_then_killed_goes_on_to_the_same_bits(whole, tmp_path: Path) -> None:
    """SIGTERM as `ray job stop` sends it, SIGKILL of the process that drives, then the rest in this process."""
    store, folder = f"tracking.uri={store_in(tmp_path)}", tmp_path / "out"
    given = run_of(folder, store, "executor.kind=ray", "executor.num_actors=2")
    process = raysim(*given, **mark(tmp_path))
    until(process, f"round 3/{ROUNDS}")
    assert ray_daemons_of(tmp_path) == ["gcs_server", "raylet"]
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = ended(process, 143)
    seconds = time.monotonic() - sent
    assert "interrupted" in errors
    assert seconds < 3, f"{seconds:.1f} s"
    assert ray_daemons_of(tmp_path) == []
    assert status_of(tmp_path) == "KILLED"

    process = raysim("resume", str(folder), "--set", "executor.num_actors=1")
    said = until(process, "round ")
    assert "resuming after round" in said
    process.kill()
    ended(process, -signal.SIGKILL)

    finishing = ["resume", str(folder), "--set", "executor.kind=in-process", "--set", "executor.num_actors=null"]
    output, _ = ended(raysim(*finishing, "--json"))
    summary = summary_in(output)
    assert_same_run(summary, whole)
    again, errors = ended(raysim(*finishing, "--json"))
    assert again == output
    assert "round" not in errors


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_actor_that_is_killed_is_replaced(whole, local_ray: None, tmp_path: Path, capsys) -> None:
    import ray

    scenario, killed = build_scenario(tiny_settings(*LONG)), []
    with RayRunner(2, None) as runner:
        pid = ray.get(runner.driver_actor.process_id.remote())
        rounds = []
        for report in runner.run(scenario, Storage(tmp_path, 2, 2)):
            rounds.append(report.round)
            if report.round == 5 and not killed:
                left = tmp_path / "checkpoints" / ".round_000006.safetensors.0123456789ab.partial"
                left.touch()
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        assert not left.exists(), "what a lost actor was writing"
        digest = tensors.digest(runner.final_state().params)
        cut_off = runner.driver_actor
        again = runner._replace_driver(scenario, Storage(tmp_path, 2, 2), Start(), Failure(Kind.UNREACHABLE), 2)
        with pytest.raises(ray.exceptions.RayActorError):  # it lived on, and could have written
            ray.get(cut_off.process_id.remote())
    assert again.round == ROUNDS
    assert again.wall_s > 0
    assert digest == whole["params_sha256"]
    assert rounds[-1] == ROUNDS
    assert set(rounds) == set(range(1, ROUNDS + 1))
    assert "the driver actor was lost: resuming after round" in capsys.readouterr().err
    assert checkpoint.newest(tmp_path / "checkpoints", print).round == ROUNDS


@pytest.mark.ray
@pytest.mark.long
def test_a_driver_actor_whose_machine_is_lost_is_replaced_on_another(whole, tmp_path: Path) -> None:
    """The run's files are where both machines reach them; nothing binds the driver actor to the first.

    Reports of rounds that ended while the machine was being lost may be lost with it; their records are not.
    """
    command = [sys.executable, "-m", "tests.executors.ray.lost_node", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["digest"] == whole["params_sha256"]
    assert found["recorded"] == list(range(1, ROUNDS + 1))
    resumed = re.search(r"the driver actor was lost: resuming after round (\d+)", done.stderr)
    assert resumed
    assert set(found["reported"]) >= {*range(1, 6), *range(int(resumed[1]) + 1, ROUNDS + 1)}


@pytest.mark.ray
@pytest.mark.long
def test_a_run_whose_machine_is_lost_goes_on_from_another_machine_of_the_cluster(whole, tmp_path: Path) -> None:
    """All that drives it is on the second of two machines, and is killed there; its folder is one that both reach."""
    from ray.cluster_utils import Cluster

    scratch = tempfile.mkdtemp(prefix="rs", dir="/tmp")  # short: Ray's socket paths have a limit
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        lost = cluster.add_node(num_cpus=1, temp_dir=scratch)
        cluster.wait_for_nodes()
        raylet = psutil.Process(lost.all_processes["raylet"][0].process.pid)
        store, uri = f"tracking.uri={store_in(tmp_path)}", f"file://{tmp_path}/out"
        given = run_of(uri, store, "executor.kind=ray", "executor.num_actors=2")
        driving = python("-m", "tests.executors.ray.run_on_machine", cluster.address, scratch, *given)
        until(driving, f"round 5/{ROUNDS}")
        there = [child for child in raylet.children(recursive=True) if child.name().startswith("ray::DriverActor")]
        assert len(there) == 1
        driving.kill()
        cluster.remove_node(lost, allow_graceful=False)
        ended(driving, -signal.SIGKILL)
        assert not psutil.wait_procs(there, timeout=60)[1]
        elsewhere = ["--set", f"executor.address={cluster.address}", "--set", "executor.num_actors=1"]
        output, errors = ended(raysim("resume", uri, *elsewhere, "--json"))
        assert "resuming after round" in errors
        assert_same_run(summary_in(output), whole)
    finally:
        cluster.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


DISK_FULL = """
folder=$1 python=$2; shift 2
mount -t tmpfs -o size=10m none "$folder/disk" || exit 77
head -c 10238608 /dev/zero > "$folder/disk/filler"
"$python" -m raysim "$@"; echo $? > "$folder/first"
ls "$folder/disk/out/checkpoints" > "$folder/kept"
rm "$folder/disk/filler"
"$python" -m raysim resume "$folder/disk/out" --json --set executor.kind=in-process --set executor.num_actors=null
echo $? > "$folder/second"
cp -r "$folder/disk/out" "$folder/copy"
"""


@pytest.mark.ray
@pytest.mark.long
def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(whole, tmp_path: Path) -> None:
    """On a small file system of memory, mounted for these two commands alone."""
    (tmp_path / "disk").mkdir()
    store = f"tracking.uri={store_in(tmp_path)}"
    given = run_of(tmp_path / "disk" / "out", store, *ON_RAY)
    spaces = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    done = subprocess.run(
        [*spaces, "sh", "-c", DISK_FULL, "sh", str(tmp_path), sys.executable, *given],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if not (tmp_path / "first").exists():
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip().splitlines()[-1]}")
    codes = [(tmp_path / name).read_text().strip() for name in ("first", "second")]
    assert codes == ["1", "0"], done.stderr[-3000:]
    failed = next(line for line in done.stderr.splitlines() if line.startswith("raysim: the run failed: round "))
    assert "No space left on device" in failed
    last = int(failed.split("round ")[1].split(":")[0]) - 1
    kept = (tmp_path / "kept").read_text().split()
    assert f"round_{last // 2 * 2:06d}.safetensors" in kept
    assert f"resuming after round {last // 2 * 2} of {ROUNDS}" in done.stderr
    assert_same_run(summary_in(done.stdout) | {"output_dir": str(tmp_path / "copy")}, whole)
