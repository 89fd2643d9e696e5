"""What is scored after a round, on which rows, and what is decided by it."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raysim.analysis.replay import finished_run
from raysim.analysis.replay import run as replay
from raysim.client import evaluation
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from raysim.experiment import run as experiment
from raysim.pruning import submodel
from raysim.simulation import checkpoint, records
from raysim.simulation.build import build_scenario
from raysim.simulation.scenario import StopRules
from raysim.simulation.state import Start, Storage
from raysim.terminal.console import summary_lines
from raysim.tracking import description
from tests.clocked import QUICK, played
from tests.conftest import tiny_settings

VALIDATED = (*QUICK, "data.validation_share=0.2")


def test_validation_rows_are_scored_with_the_model_that_test_rows_score() -> None:
    scenario = build_scenario(tiny_settings(*VALIDATED))
    state, reports = played(scenario)
    workload = scenario.workload
    submodel.load_params(workload.model, state.params)
    sums = evaluation.score(workload.task, workload.model, *workload.data.train_rows(scenario.validation_rows))
    last = reports[-1].validation
    assert last is not None
    assert (last.primary, last.loss) == (workload.task.primary_of(sums), sums.mean_loss)
    assert [report.validation is not None for report in reports] == [True] * 4
    best = max(reports, key=lambda report: report.validation.primary)  # the first of equal ones
    assert state.totals.chosen is not None
    assert state.totals.chosen.round == best.round
    assert state.totals.chosen.primary == best.score.primary
    assert state.totals.validation_primary == last.primary
    columns = records.round_columns(reports[-1])
    assert columns["validation_accuracy"] == columns["accuracy/validation"] == last.primary
    assert columns["validation_loss"] == columns["loss/validation"] == last.loss


def test_a_run_without_validation_rows_records_none_and_names_the_rows_that_end_it(tmp_path: Path) -> None:
    _, reports = played(build_scenario(tiny_settings(*QUICK)))
    assert all(report.validation is None for report in reports)
    assert not [name for name in records.round_columns(reports[0]) if "validation" in name]


def test_an_accuracy_ends_a_run_on_the_validation_rows_where_there_are_any() -> None:
    scenario = build_scenario(tiny_settings(*VALIDATED, "training.learning_rate=0.3", "rounds=8"))
    _, reports = played(scenario)
    scores = [(report.validation.primary, report.score.primary) for report in reports]

    def first(which: int, limit: float) -> int:
        return next((index for index, both in enumerate(scores, 1) if both[which] >= limit), len(scores))

    limit = next(ours for ours, _ in scores if first(0, ours) != first(1, ours))
    _, stopped = played(replace(scenario, stop=StopRules(primary=limit)))
    assert len(stopped) == first(0, limit)


@pytest.mark.slow
def test_what_was_reached_on_validation_rows_survives_a_resume_and_is_replayed(tmp_path: Path) -> None:
    scenario = build_scenario(tiny_settings(*VALIDATED))
    whole, _ = played(scenario)
    storage = Storage(storage_path(tmp_path), every=1, keep=9)
    runner = InProcessRunner()
    next(iter(runner.run(scenario, storage)))
    again = InProcessRunner()
    list(again.run(scenario, storage, Start(1)))
    assert again.final_state().totals == whole.totals
    kept = checkpoint.load(checkpoint.path_of(storage.checkpoints, 4))
    assert kept.totals.chosen == whole.totals.chosen


@pytest.mark.slow
@pytest.mark.parametrize(("share", "rows"), [(0.2, "validation rows"), (0.0, "test rows")])
def test_the_summary_names_the_rows_that_ended_a_run(tmp_path: Path, share: float, rows: str) -> None:
    output = tmp_path / "run"
    settings = tiny_settings(
        *QUICK, f"data.validation_share={share}", "stop.accuracy=0.01", f"tracking.uri=sqlite:///{tmp_path}/m.db"
    )
    experiment.run(experiment.prepare(settings, output), InProcessRunner(), time.monotonic())
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rounds"], summary["stopped_by_accuracy_on"]) == (1, rows)
    assert ("validation_accuracy" in summary) == (rows == "validation rows")
    lines = "\n".join(summary_lines(summary))
    assert f"stop.accuracy           is of the {rows}" in lines
    assert ("validation accuracy     " in lines) == (rows == "validation rows")
    assert f"| `stop.accuracy` | of the {rows} |" in description.after("", summary, None)
    metadata = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert ("validation_sha256" in metadata) == (rows == "validation rows")
    table = records.read(output / "rounds.parquet")
    assert ("validation_accuracy" in table) == (rows == "validation rows")
    assert (output / "report.html").read_text(encoding="utf-8").count(f"on the {rows} (stop.accuracy)") == 1
    replayed = replay.replay(finished_run.read(str(output)))
    assert not replayed.unknown
    assert replayed.rounds[-1].totals.validation_primary == summary.get("validation_accuracy")
