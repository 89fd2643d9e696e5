"""The best trial is completed like a single run, and its messages explain how to resume the sweep."""

from pathlib import Path

import pytest

from raysim.analysis.sweep import best, run, trial
from raysim.analysis.sweep.journal import FINISHED, Entry
from raysim.analysis.sweep.plan import plan
from raysim.analysis.sweep.writer import SweepWriter, opened
from raysim.core.errors import TrackingLostError
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from tests.analysis.sweep.test_sweep import SWEEP, settings_with


def trial_that_finished(writer: SweepWriter) -> None:
    """Run the only trial of a sweep, and write its result and its end."""
    (only,) = writer.sweep.trials
    runs = [
        (settings, storage_path(only.folder_of(settings, writer.folder)), InProcessRunner()) for settings in only.runs
    ]
    for result in trial.results(runs, writer.sweep.settings.metric):
        writer.add_result(only, Entry(0, result.round, result.value, result.accuracy))
    writer.add_end(only, Entry(0, ended=FINISHED))


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
