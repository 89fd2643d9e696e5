"""A trial's runs have observers like any other run: they see each round once, and how the run ended."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from raysim import RunInfo, RunObserver, RunOutcome
from raysim.analysis.sweep import trial
from raysim.core.errors import RunFailedError
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from raysim.simulation.state import RoundReport
from tests.conftest import tiny_settings

SHORT = ("rounds=3", "data.max_train_examples=150", "evaluation.max_examples=50", "checkpoint.every=1")
METRIC = "accuracy/global"


class Recorder(RunObserver):
    """Writes down its calls."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        assert run.metadata["partition_sha256"]
        self.calls.append(("begin", resumed_from, (run.folder / "config.yaml").is_file()))

    def on_round(self, report: RoundReport) -> None:
        self.calls.append(("round", report.round))

    def on_end(self, outcome: RunOutcome) -> None:
        self.calls.append(("end", outcome.state, outcome.summary and outcome.summary["rounds"]))


class Broken(RunObserver):
    def on_round(self, report: RoundReport) -> None:
        raise OSError("no space")


@pytest.fixture(autouse=True)
def calls() -> list[tuple[Any, ...]]:
    Recorder.calls.clear()
    return Recorder.calls


def results_of(folder: Path, *overrides: str, observers: str = f"{__name__}:Recorder", metric: str = METRIC):
    settings = tiny_settings(*SHORT, f"tracking.also=[{observers}]", *overrides)
    return trial.results([(settings, storage_path(folder), InProcessRunner())], metric)


@pytest.mark.slow
def test_a_trial_that_is_stopped_early_and_one_that_goes_on_to_its_end(tmp_path, calls):
    results = results_of(tmp_path)
    assert next(results).round == 1
    results.close()
    assert calls == [("begin", 0, True), ("round", 1), ("end", "killed", None)]
    calls.clear()
    assert [result.round for result in results_of(tmp_path)] == [1, 2, 3]
    assert calls == [("begin", 1, True), ("round", 2), ("round", 3), ("end", "finished", 3)]


@pytest.mark.slow
def test_a_trial_that_fails_is_failed_for_its_observers(tmp_path, calls):
    with pytest.raises(RunFailedError, match="no/metric"):
        list(results_of(tmp_path, metric="no/metric"))
    assert calls[-1] == ("end", "finished", 3)
    calls.clear()
    with pytest.raises(RunFailedError):
        list(results_of(tmp_path / "diverged", "training.learning_rate=1e30"))
    assert calls[-1] == ("end", "failed", None)


@pytest.mark.slow
def test_an_observer_that_fails_is_reported_and_the_trial_goes_on(tmp_path, capsys):
    assert [result.round for result in results_of(tmp_path, observers=f"{__name__}:Broken")] == [1, 2, 3]
    assert capsys.readouterr().err.count("no space") == 1
