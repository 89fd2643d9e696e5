"""TensorBoard's event files: each metric of each round is in them once, wherever a run was stopped or killed."""

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from raysim.core.errors import RunFailedError, SettingError
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from raysim.experiment import run as experiment
from raysim.experiment.resume import locked_run, prepare
from raysim.simulation import records
from raysim.tracking import tensorboard
from raysim.tracking.observer import RunInfo, RunOutcome
from raysim.tracking.tensorboard import TensorBoardObserver, last_round_in
from tests.conftest import tiny_settings
from tests.experiment.test_resume import Stopping

SHORT = (
    *("rounds=5", "tracking.uri=none", "checkpoint.every=2"),
    *("data.max_train_examples=150", "evaluation.max_examples=50"),
)


def points_in(run: Path) -> list[tuple[str, int, float]]:
    """All points of all files of a run, read as TensorBoard's format says."""
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            content = content[12 + length + 4 :]
    return found


def assert_complete(run: Path, rounds: int = 5) -> None:
    """Each metric that the records have of a round is there once, with its value."""
    points = points_in(run)
    logged = [records.logged(run / "rounds", round) for round in range(1, rounds + 1)]
    expected = {(name, each.round): value for each in logged for name, value in each.metrics.items()}
    assert Counter((tag, step) for tag, step, _ in points) == dict.fromkeys(expected, 1)
    for tag, step, value in points:
        if tag not in records.MEASURED:
            assert value == pytest.approx(expected[tag, step]), tag


def ran(folder: Path, *overrides: str, runner: InProcessRunner | None = None) -> None:
    prepared = experiment.prepare(tiny_settings(*SHORT, *overrides), folder)
    experiment.run(prepared, runner or InProcessRunner(), time.monotonic())


def resumed(folder: Path, *overrides: str) -> dict[str, Any]:
    with locked_run(str(folder), None, overrides) as stopped:
        return experiment.run(prepare(stopped), InProcessRunner(), time.monotonic())


ALSO = "tracking.also=[tensorboard]"


@pytest.mark.slow
def test_every_metric_of_every_round_is_there(tmp_path: Path) -> None:
    ran(tmp_path / "out", ALSO)
    assert_complete(tmp_path / "out")
    assert ("accuracy/global", 5) in {(tag, step) for tag, step, _ in points_in(tmp_path / "out")}


@pytest.mark.slow
def test_a_resumed_run_has_each_point_once(tmp_path: Path) -> None:
    """Rounds 2 and 4 have checkpoints; round 3 is repeated. Then the newest checkpoint is lost, too."""
    with pytest.raises(RunFailedError):
        ran(tmp_path / "out", ALSO, runner=Stopping(3))
    assert last_round_in(tmp_path / "out" / "tensorboard") == 3
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "out", killed)
    resumed(tmp_path / "out")
    assert_complete(tmp_path / "out")
    for checkpoint in (killed / "checkpoints").glob("round_*"):
        checkpoint.unlink()
    resumed(killed)
    assert_complete(killed)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 5000])
def test_rounds_that_a_killed_process_has_not_written_are_added(tmp_path: Path, cut: int) -> None:
    """Its file ends in the middle of round 3, or of an earlier one that a checkpoint covers."""
    with pytest.raises(RunFailedError):
        ran(tmp_path / "out", ALSO, runner=Stopping(3))
    (file,) = (tmp_path / "out" / "tensorboard").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - cut])
    whole = last_round_in(file.parent)
    assert whole < 3
    resumed(tmp_path / "out")
    file.write_bytes(content[: size_up_to(content, whole)])
    assert_complete(tmp_path / "out")


def size_up_to(content: bytes, rounds: int) -> int:
    """Bytes of a file up to the end of a round: its first event is no round."""
    start = 0
    for _ in range(1 + rounds):
        start += 12 + int.from_bytes(content[start : start + 8], "little") + 4
    return start


@pytest.mark.slow
def test_a_run_to_which_it_is_added_when_it_is_resumed_has_all_rounds(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError):
        ran(tmp_path / "out", runner=Stopping(3))
    resumed(tmp_path / "out", ALSO)
    assert_complete(tmp_path / "out")


@pytest.mark.slow
def test_a_round_that_is_reported_again_is_written_once(tmp_path: Path) -> None:
    """As after the loss of a driver actor."""
    ran(tmp_path / "out")
    folder = storage_path(tmp_path / "out")
    observer = TensorBoardObserver()
    observer.on_begin(RunInfo(tiny_settings(), None, folder), 0)  # type: ignore[arg-type]
    for round in (1, 2, 3, 2, 3, 4, 5):
        observer.on_round(Reported(round))  # type: ignore[arg-type]
    observer.on_end(RunOutcome("finished", {}))
    assert_complete(tmp_path / "out")


class Reported:
    """All that is read of a report."""

    def __init__(self, round: int) -> None:
        self.round = round


@pytest.mark.slow
def test_rounds_are_visible_before_the_run_ends(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tensorboard, "FLUSH_S", 0.0)
    ran(tmp_path / "out")
    observer = TensorBoardObserver()
    observer.on_begin(RunInfo(tiny_settings(), None, storage_path(tmp_path / "out")), 2)  # type: ignore[arg-type]
    assert last_round_in(tmp_path / "out" / "tensorboard") == 2
    observer.on_end(RunOutcome("finished", {}))


def test_a_folder_in_an_object_store_is_refused() -> None:
    run = RunInfo(tiny_settings(), None, storage_path("s3://bucket/run?region=eu-west-1"))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="is not on this machine; TensorBoard's files have to be"):
        TensorBoardObserver().on_begin(run, 0)
