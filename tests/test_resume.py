"""A run that is stopped anywhere and resumed: the same bits, clock, records and curves as one that was not."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clocked import FRAIL, MODES, QUICK
from conftest import settings_of
from mlflow.tracking import MlflowClient
from test_cli import left_with, termination_handler  # noqa: F401

from raysim import experiment, records, resuming, simulation
from raysim.errors import RunFailedError

MEASURED = {"wall_s", "run_id", "output_dir", "tracking_uri", "experiment_id"}
MEASURED_METRIC = "clock/wall_s"


class Stopping(simulation.InProcessRunner):
    """Stops as a killed process does, once a round has been reported."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def run(self, scenario, storage, start):
        for report in super().run(scenario, storage, start):
            if report.round > self._after:
                raise RunFailedError(report.round, -1, "stopped by a test")
            yield report


def played(folder: Path, settings, runner=None) -> dict[str, Any]:
    runner = runner or simulation.InProcessRunner()
    return experiment.run(experiment.prepare(settings, folder), runner, time.monotonic())


def resumed(folder: Path | str, *overrides: str, runner=None, uri: str | None = None) -> dict[str, Any]:
    stopped = resuming.find(str(folder), uri, overrides)
    assert not stopped.is_finished
    return experiment.run(resuming.prepare(stopped), runner or simulation.InProcessRunner(), time.monotonic())


def curves(summary: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """All metrics of a run as MLflow has them: (step, value) in the order of steps; none has a step twice."""
    client = MlflowClient(summary["tracking_uri"])
    run = client.get_run(summary["run_id"])
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    found = {}
    for key in run.data.metrics:
        points = sorted(client.get_metric_history(run.info.run_id, key), key=lambda point: point.step)
        steps = [point.step for point in points]
        assert len(set(steps)) == len(steps), f"{key} has a step twice"
        stamps = [point.timestamp for point in points]
        assert stamps == sorted(stamps), f"{key} goes back in time"
        found[key] = [(point.step, point.value) for point in points]
    walls = [value for _, value in found.pop(MEASURED_METRIC)]
    assert walls == sorted(walls)
    assert len(walls) == summary["rounds"]
    return found


def assert_same_run(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Summaries, records and curves agree in all but what was measured."""
    assert {k: v for k, v in ours.items() if k not in MEASURED} == {
        k: v for k, v in theirs.items() if k not in MEASURED
    }
    tables = [pq.read_table(Path(summary["output_dir"]) / "clients.parquet") for summary in (ours, theirs)]
    assert tables[0].equals(tables[1])
    tables = [pq.read_table(Path(summary["output_dir"]) / "rounds.parquet") for summary in (ours, theirs)]
    computed = [table.drop_columns(list(records.MEASURED)) for table in tables]
    assert computed[0].equals(computed[1])
    assert curves(ours) == curves(theirs)


CASES = {
    "ca-hfp in sync": ("ca-hfp", "sync", 3),
    "ca-hfp in deadline": ("ca-hfp", "deadline", 2),
    "magnitude in over-selection": ("magnitude", "over-selection", 3),
    "ca-hfp in async": ("ca-hfp", "async", 2),
    "scaffold in deadline": ("scaffold", "partial", 3),
    "autoflip before its first checkpoint": ("autoflip", "sync", 0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_same_bits(case: str, tmp_path: Path) -> None:
    """Checkpoints every second round, so that a round or two are played again."""
    method, mode, after = CASES[case]
    settings = settings_of(
        method, *QUICK, *MODES[mode], *FRAIL, "rounds=5", "checkpoint.every=2",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    )  # fmt: skip
    whole = played(tmp_path / "whole", settings)
    with pytest.raises(RunFailedError):
        played(tmp_path / "out", settings, Stopping(after))
    run_id = json.loads((tmp_path / "out" / "run.json").read_text())["run_id"]
    told = MlflowClient(whole["tracking_uri"]).get_metric_history(run_id, "clock/simulated_s")
    assert [point.step for point in told] == list(range(1, after // 2 * 2 + 1)), "only what a checkpoint covers"
    summary = resumed(tmp_path / "out")
    assert summary["run_id"] == run_id
    assert_same_run(summary, whole)
    assert resuming.find(str(tmp_path / "out")).summary == summary
