"""What a run leaves when it is killed or cannot write, and folders that hold the files of another one."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

import raysim
from raysim.core.errors import RunFailedError, SettingError
from raysim.executors.in_process import InProcessExecutor
from raysim.simulation import loop, parts
from raysim.simulation.state import Storage
from raysim.simulation.transition import initial_state
from tests.conftest import ROOT, tiny_settings
from tests.experiment.test_resume import Stopping, played, resumed
from tests.stores import store_in

FEW = ("data.max_train_examples=100", "evaluation.max_examples=40", "checkpoint.every=1")

KILLED = """
import os, sys
from pathlib import Path
from raysim.tracking import mlflow_observer
from tests.conftest import tiny_settings
from tests.experiment.test_resume import played
mlflow_observer.update_run_json = lambda *_, **__: os._exit(9)
played(Path(sys.argv[1]), tiny_settings(*sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_as_soon_as_mlflow_has_it_is_ended_when_it_is_resumed(tmp_path: Path) -> None:
    """A kill between the creation of the run and the note of its id."""
    store, out = store_in(tmp_path), tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(out), *FEW, f"tracking.uri={store}"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 9
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("digits").experiment_id
    (lost,) = client.search_runs([experiment])
    assert lost.info.status == "RUNNING"
    other = client.create_run(experiment)
    summary = resumed(out)
    statuses = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
    assert statuses == {
        lost.info.run_id: "KILLED",
        other.info.run_id: "RUNNING",
        summary["run_id"]: "FINISHED",
    }


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["settings", "copied"])
def test_a_folder_with_the_files_of_another_run_is_refused(harm: str, tmp_path: Path) -> None:
    played(tmp_path / "out", tiny_settings(*FEW, "tracking.uri=none"))
    out = tmp_path / "out"
    if harm == "settings":
        for name in ("config.yaml", "run.json", "summary.json"):
            (out / name).unlink()
    else:
        shutil.copytree(out / "rounds", tmp_path / "new" / "rounds")
        out = tmp_path / "new"
    with pytest.raises(SettingError, match=r"--output='.*' holds .* of another run"):
        played(out, tiny_settings(*FEW, "tracking.uri=none", "rounds=1", "seed=9"))


@pytest.mark.slow
def test_partials_in_a_folder_go_when_a_run_begins(tmp_path: Path) -> None:
    left = tmp_path / "out" / ".run.json.0123456789ab.partial"
    left.parent.mkdir()
    left.touch()
    played(tmp_path / "out", tiny_settings(*FEW, "rounds=1", "tracking.uri=none"))
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_full_disk_is_one_message_and_the_round_before_is_kept(tiny_scenario, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system call fails alike."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rounds = loop.run_rounds(
        tiny_scenario,
        initial_state(tiny_scenario),
        InProcessExecutor(tiny_scenario.workload),
        Storage(tmp_path, 1, 2),
    )
    next(rounds)
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(
            RunFailedError, match=r"^round 2: its files cannot be written: .*File too large"
        ) as failed:
            next(rounds)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.details == ""
    assert {file: file.read_bytes() for file in kept} == kept
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_run_is_stopped_and_another_one_may_not_take_its_folder_meanwhile(tmp_path: Path) -> None:
    from raysim.executors.in_process import InProcessRunner
    from raysim.experiment import run as experiment

    prepared = experiment.prepare(tiny_settings(*FEW, "tracking.uri=none"), tmp_path / "out")
    with pytest.raises(RunFailedError):
        played(tmp_path / "out", tiny_settings(*FEW, "tracking.uri=none", "seed=4"), Stopping(1))
    before = (tmp_path / "out" / "config.yaml").read_text()
    with pytest.raises(SettingError, match="holds a run already"):
        experiment.run(prepared, InProcessRunner(), 0.0)
    assert (tmp_path / "out" / "config.yaml").read_text() == before


def dropped(column: str):
    def drop(file: Path) -> None:
        pq.write_table(pq.read_table(file).drop_columns([column]), file)

    return drop


def retyped(file: Path) -> None:
    table = pq.read_table(file)
    place = table.column_names.index("accuracy")
    pq.write_table(table.set_column(place, "accuracy", pa.array(["high"] * len(table))), file)


HARMS = {
    "rounds empty": ("rounds", lambda file: file.write_bytes(b"")),
    "rounds missing": ("rounds", Path.unlink),
    "rounds without a column": ("rounds", dropped("wall_s")),
    "rounds of another type": ("rounds", retyped),
    "rounds of another round": ("rounds", lambda file: shutil.copy(file.with_name("round_000002.parquet"), file)),
    "clients cut off": ("clients", lambda file: file.write_bytes(file.read_bytes()[:-9])),
    "clients missing": ("clients", Path.unlink),
    "clients without a column": ("clients", dropped("fate")),
    "channels missing": ("channels", Path.unlink),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.raises(RunFailedError):
        played(folder, tiny_settings(*FEW, "tracking.uri=none", "rounds=4"), Stopping(2))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_a_record_of_an_earlier_round_that_is_lost_is_named_before_anything_is_trained(
    harm: str, stopped: Path, tmp_path: Path
) -> None:
    table, hurt = HARMS[harm]
    shutil.copytree(stopped, tmp_path / "out")
    hurt(tmp_path / "out" / table / "round_000001.parquet")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    with pytest.raises(SettingError, match=rf"RUN='.*' cannot be resumed: {table}/round_000001\.parquet is "):
        resumed(tmp_path / "out")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data_sha256", "environment", "output_dir"])
def test_a_run_json_that_lacks_an_entry_is_named(name: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "run.json").read_text())
    del content[name]
    (tmp_path / "out" / "run.json").write_text(json.dumps(content))
    with pytest.raises(SettingError, match=f"run.json has no '{name}'"):
        resumed(tmp_path / "out")


@pytest.mark.slow
def test_strangers_in_the_folders_of_a_run_change_nothing(stopped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    for folder in ("rounds", "clients", "channels", "checkpoints"):
        for name in ("notes.txt", "round_x.parquet", "round_000001.parquet.bak", "round_1.safetensors.old"):
            (out / folder / name).write_text("a stranger")
    summary = resumed(out)
    assert summary["rounds"] == 4
    assert pq.read_table(out / "rounds.parquet")["round"].to_pylist() == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run with the same settings but its seed, stopped after the same round."""
    folder = tmp_path_factory.mktemp("other") / "out"
    with pytest.raises(RunFailedError):
        played(folder, tiny_settings(*FEW, "tracking.uri=none", "rounds=4", "seed=5"), Stopping(2))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("table", ["rounds", "clients", "channels"])
def test_a_record_of_another_run_is_refused(table: str, stopped: Path, other: Path, tmp_path: Path, capsys) -> None:
    out, part = tmp_path / "out", f"{table}/round_000001.parquet"
    shutil.copytree(stopped, out)
    shutil.copy(other / part, out / part)
    with pytest.raises(SettingError, match=rf"cannot be resumed: {part} is of another run"):
        resumed(out)
    (out / f"{table}.parquet").unlink(missing_ok=True)
    with pytest.raises(
        SettingError, match=rf"RUN='.*' cannot be read: {table}/round_00000\d.parquet and .* different"
    ):
        raysim.load(out).table(table)


@pytest.mark.slow
def test_a_joined_record_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SPAN", 2)
    for name, seed in (("out", 3), ("other", 5)):
        with pytest.raises(RunFailedError):
            played(tmp_path / name, tiny_settings(*FEW, "tracking.uri=none", f"seed={seed}", "rounds=4"), Stopping(2))
    part = "clients/rounds_000001-000002.parquet"
    shutil.copy(tmp_path / "other" / part, tmp_path / "out" / part)
    with pytest.raises(SettingError, match=rf"cannot be resumed: {part} is of another run"):
        resumed(tmp_path / "out")


@pytest.mark.slow
def test_records_beyond_the_last_round_are_no_part_of_the_tables(
    stopped: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    shutil.copy(other / "rounds" / "round_000001.parquet", tmp_path / "out" / "rounds" / "round_000009.parquet")
    resumed(tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "rounds.parquet")["round"].to_pylist() == [1, 2, 3, 4]
    assert "rounds/round_000009.parquet is left out: the last round is 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_passed_over(stopped: Path, other: Path, tmp_path: Path, capsys) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    shutil.copytree(stopped, out)
    (newest,) = sorted((other / "checkpoints").glob("*.safetensors"))[-1:]
    shutil.copy(newest, out / "checkpoints")
    ours = resumed(out)
    assert "is of another run" in capsys.readouterr().err
    theirs = played(whole, tiny_settings(*FEW, "tracking.uri=none", "rounds=4"))
    assert ours["params_sha256"] == theirs["params_sha256"]
    assert pq.read_table(out / "clients.parquet").equals(pq.read_table(whole / "clients.parquet"))
