"""The best trial is completed like a single run, and its messages explain how to resume the sweep."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from raysim.analysis.sweep import best, run, trial
from raysim.analysis.sweep.journal import FINISHED, Entry
from raysim.analysis.sweep.plan import plan
from raysim.analysis.sweep.writer import SweepWriter, opened
from raysim.core.errors import TrackingLostError
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from raysim.simulation import records
from tests.analysis.sweep.test_run import SWEEP, settings_with

TEST = ("accuracy/global", "accuracy/best", "loss/global")


def trial_that_finished(writer: SweepWriter, index: int = 0) -> None:
    """Run a trial of a sweep, and write its result and its end."""
    only = writer.sweep.trials[index]
    runs = [
        (settings, storage_path(only.folder_of(settings, writer.folder)), InProcessRunner()) for settings in only.runs
    ]
    for result in trial.results(runs, writer.sweep.settings.metric):
        writer.add_result(only, Entry(index, result.round, result.value, result.primary))
    writer.add_end(only, Entry(index, ended=FINISHED))


@pytest.mark.slow
def test_a_store_that_is_lost_at_the_end_names_no_way_to_resume_a_single_run(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    shared = SWEEP["set"] | {"rounds": 1, "tracking.uri": f"sqlite:///{store}"}
    search = {"training.learning_rate": {"grid": [0.1]}}
    sweep = plan(settings_with(set=shared, search=search, seeds=[0], asha=None))
    with opened(sweep, tmp_path / "out", resumes=False) as writer:
        writer.begin(run.check(sweep))
        trial_that_finished(writer)
        tracker = writer.runs.tracker_of(sweep.trials[0], sweep.trials[0].runs[0])
        find = tracker.find

        def found_and_lost(run_id: str) -> object:
            known = find(run_id)
            store.rename(store.with_suffix(".away"))
            store.mkdir()
            return known

        tracker.find = found_and_lost
        with pytest.raises(TrackingLostError) as lost:
            best.complete(writer)
    assert str(lost.value)
    assert "resume" not in str(lost.value)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.0])
def test_trials_are_chosen_by_validation_rows_and_only_the_best_shows_its_test_accuracy(tmp_path, share) -> None:
    shared = SWEEP["set"] | {
        "rounds": 2, "data.validation_share": share, "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
    }  # fmt: skip
    search = {"training.learning_rate": {"grid": [1e-6, 0.2]}}
    sweep = plan(settings_with(set=shared, search=search, seeds=[0], asha=None))
    with opened(sweep, tmp_path / "out", resumes=False) as writer:
        writer.begin(run.check(sweep))
        for each in sweep.trials:
            trial_that_finished(writer, each.index)
        run._complete(writer)
        content = run.content_of(writer)
        table = run.table_of(writer.folder)
    rows = "validation" if share else "test"
    metric = "accuracy/validation" if share else "accuracy/global"
    assert (content["metric"], content["metric_is_of"], content["accuracy_is_of"]) == (metric, *[f"{rows} rows"] * 2)
    rounds = [records.read(path) for path in sorted((tmp_path / "out" / "trials").glob("*/*/rounds.parquet"))]
    chosen = [each["validation_accuracy" if share else "accuracy"][-1] for each in rounds]
    assert [each["accuracy"] for each in content["trials"]] == [each["value"] for each in content["trials"]] == chosen
    best_trial = int(np.argmax(chosen))
    assert content["best"]["trial"] == best_trial
    assert content["best"].get("test_accuracy") == (rounds[best_trial]["accuracy"][-1] if share else None)
    assert table is not None
    assert [row["accuracy"]["mean"] for row in table.table] == chosen
    assert [note for note in table.notes if f"{rows} " in note and str(writer.folder) in note]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([writer.tracker.experiment_id])
    trials = [each for each in found if "trial" in each.data.tags]
    assert len(trials) == 2
    for each in trials:
        assert set(TEST) & each.data.metrics.keys() == (set() if share else set(TEST))
        assert ("accuracy/validation" in each.data.metrics) == bool(share)
    parent = client.get_run(writer.tracker.run_id)
    assert parent.data.metrics.get("best/test_accuracy") == content["best"].get("test_accuracy")
    for folder in (tmp_path / "out" / "trials").glob("*/*"):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        is_best = int(folder.parent.name) == best_trial
        assert ("accuracy" in summary) == (is_best or not share)
        assert ("validation_accuracy" in summary) == bool(share)
