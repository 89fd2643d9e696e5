"""Observers of a run: their arguments, the order of their calls, and those that fail."""

import asyncio
import json
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from raysim import RunInfo, RunObserver, RunOutcome
from raysim.core.errors import ReportLostError, RunFailedError, SettingError, StoppedError, TrackingLostError
from raysim.core.storage.local import storage_path
from raysim.executors.in_process import InProcessRunner
from raysim.experiment import run as experiment
from raysim.experiment.observers import Observers, outcome_of
from raysim.experiment.resume import locked_run, prepare
from raysim.simulation.state import RoundReport
from raysim.tracking import observer
from tests.cli.test_main import arguments
from tests.commands import left_with
from tests.conftest import ROOT, tiny_settings
from tests.stores import store_in

HERE = "tests.tracking.test_observer"
SHORT = (
    *("rounds=3", "tracking.uri=none", "checkpoint.every=2"),
    *("data.max_train_examples=150", "evaluation.max_examples=50"),
)


class Recorder(RunObserver):
    """Writes down its calls."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        there = {
            name
            for name in ("config.yaml", "run.json", "plan.json", "budgets.json", "devices.parquet")
            if (run.folder / name).is_file()
        }
        self.calls.append(("begin", resumed_from, len(there), len(run.scenario.workload.population)))
        assert run.metadata["partition_sha256"]
        assert run.settings.tracking.also == [f"{HERE}:Recorder"]

    def on_round(self, report: RoundReport) -> None:
        self.calls.append(("round", report.round))

    def on_end(self, outcome: RunOutcome) -> None:
        self.calls.append(("end", outcome.state, outcome.summary, outcome.error))


@pytest.fixture(autouse=True)
def calls() -> list[tuple[Any, ...]]:
    Recorder.calls.clear()
    return Recorder.calls


def ran(folder: Path, *overrides: str, runner: InProcessRunner | None = None) -> dict[str, Any]:
    prepared = experiment.prepare(tiny_settings(*SHORT, *overrides), folder)
    return experiment.run(prepared, runner or InProcessRunner(), time.monotonic())


class Ending(InProcessRunner):
    """Ends with an error once a round has been reported."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self._after, self._error = after, error

    def run(self, scenario, storage, start):
        for report in super().run(scenario, storage, start):
            yield report
            if report.round == self._after:
                raise self._error


@pytest.mark.slow
def test_an_observer_sees_the_beginning_each_round_and_the_end(tmp_path: Path, calls) -> None:
    summary = ran(tmp_path / "out", f"tracking.also=[{HERE}:Recorder]")
    assert calls == [
        ("begin", 0, 5, 6),
        ("round", 1),
        ("round", 2),
        ("round", 3),
        ("end", "finished", summary, None),
    ]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished"] is True
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "state", "noted"),
    [
        (RunFailedError(4, -1, "burnt"), "failed", "failed"),
        (StoppedError("asked to"), "killed", "stopped"),
        (KeyboardInterrupt(), "killed", "stopped"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_observer_sees_how_a_run_ended_early_and_where_it_is_resumed(
    tmp_path: Path, calls, error, state, noted
) -> None:
    also = f"tracking.also=[{HERE}:Recorder]"
    with pytest.raises(type(error)):
        ran(tmp_path / "out", also, runner=Ending(3, error))
    assert calls[-1] == ("end", state, None, error)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == noted
    calls.clear()
    (tmp_path / "out" / "checkpoints" / "round_000003.safetensors").unlink()
    with locked_run(str(tmp_path / "out")) as stopped:
        summary = experiment.run(prepare(stopped), InProcessRunner(), time.monotonic())
    assert calls == [("begin", 2, 5, 6), ("round", 3), ("end", "finished", summary, None)]
    assert "state" not in json.loads((tmp_path / "out" / "run.json").read_text())


class Failing(RunObserver):
    """Fails wherever it is called."""

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        raise ZeroDivisionError("no beginning")

    def on_round(self, report: RoundReport) -> None:
        raise AssertionError("is not called, since it has not begun")


class FailingLater(RunObserver):
    """Fails in every round, and at the end."""

    def on_round(self, report: RoundReport) -> None:
        raise ValueError("two lines:\nof an error")

    def on_end(self, outcome: RunOutcome) -> None:
        raise ReportLostError("which is none of raysim's")


class Leaving(RunObserver):
    """Ends the process, as it thinks."""

    def on_end(self, outcome: RunOutcome) -> None:
        sys.exit(7)


FAILURES = {
    "Failing": "failed before the first round; the run continues without it: ZeroDivisionError: no beginning",
    "FailingLater": "failed in round 1; the run continues: ValueError: two lines:",
    "Leaving": "failed at the end of the run; the run continues: SystemExit: 7",
}


@pytest.mark.slow
def test_an_observer_that_fails_is_reported_once_and_ends_nothing(tmp_path: Path, capsys) -> None:
    """Neither its run nor the others; the exit code is that of the run."""
    expected = ran(tmp_path / "alone")
    capsys.readouterr()
    also = ", ".join(f"{HERE}:{name}" for name in (*FAILURES, "Recorder"))
    Recorder.on_begin, plain = (lambda *_: None), Recorder.on_begin  # it expects to be the only one
    try:
        given = arguments(*SHORT, f"tracking.also=[{also}]")
        assert left_with(*given, "--json", "--output", str(tmp_path / "out")) == 0
    finally:
        Recorder.on_begin = plain
    said = capsys.readouterr()
    assert json.loads(said.out)["params_sha256"] == expected["params_sha256"]
    lines = [line for line in said.err.splitlines() if "tracking.also" in line]
    assert sorted(lines) == sorted(f"tracking.also='{HERE}:{name}' {what}" for name, what in FAILURES.items())
    assert "Traceback" not in said.err
    assert [call[:2] for call in Recorder.calls] == [("round", 1), ("round", 2), ("round", 3), ("end", "finished")]


NOTHING = None


def gives_nothing() -> None:
    pass


def fails() -> None:
    raise OSError("no server")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensorbord", "tracking.also='tensorbord' is unknown; known: tensorboard"),
        ("no_such_module:observer", "tracking.also='no_such_module:observer': module 'no_such_module' cannot be imp"),
        (f"{HERE}:Recordr", f"tracking.also='{HERE}:Recordr': module '{HERE}' has no 'Recordr'; nearest: Recorder, "),
        (f"{HERE}:NOTHING", f"tracking.also='{HERE}:NOTHING' is NoneType; allowed: a class or a function without"),
        (f"{HERE}:gives_nothing", f"tracking.also='{HERE}:gives_nothing' gives NoneType; allowed: a class or a func"),
        (f"{HERE}:fails", f"tracking.also='{HERE}:fails' fails: OSError: no server"),
        (f"{HERE}:fails, {HERE}:fails", f"tracking: also: '{HERE}:fails' is given twice; allowed: each once"),
    ],
    ids=lambda value: value.rpartition(":")[2][:20],
)
def test_a_wrong_observer_is_refused_before_anything_is_written(names: str, message: str, tmp_path, capsys) -> None:
    given = arguments(*SHORT, f"tracking.also=[{names}]")
    assert left_with(*given, "--output", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"raysim: {message}")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_a_name_is_looked_up_without_making_the_observer() -> None:
    observer.check_names(tiny_settings(f"tracking.also=[{HERE}:fails]").tracking)
    with pytest.raises(SettingError, match="OSError: no server"):
        observer.chosen(tiny_settings(f"tracking.also=[{HERE}:fails]").tracking)


class Noting(RunObserver):
    """Notes its calls in a list that several share, and does something at its end."""

    def __init__(self, name: str, notes: list[str], at_end=lambda outcome: None) -> None:
        self._name, self._notes, self._at_end = name, notes, at_end

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        self._notes.append(f"{self._name} begins")

    def on_end(self, outcome: RunOutcome) -> None:
        self._notes.append(f"{self._name} {outcome.state}")
        self._at_end(outcome)


def raising(error: BaseException):
    def at_end(outcome: RunOutcome) -> None:
        if outcome.state == "finished":
            raise error

    return at_end


RUN = RunInfo(tiny_settings(), None, storage_path("nowhere"))  # type: ignore[arg-type]


def test_observers_end_in_reverse_order_and_what_could_not_be_reported_is_collected() -> None:
    notes: list[str] = []
    lost = (TrackingLostError("away"), ReportLostError("no page"))
    observers = Observers(
        [
            Noting("mlflow", notes, raising(lost[0])),
            Noting("report", notes, raising(lost[1])),
            Noting("last", notes),
        ]
    )
    observers.on_begin(RUN, 0)
    assert observers.on_finish({}) == [lost[1], lost[0]]
    assert notes == [
        "mlflow begins",
        "report begins",
        "last begins",
        "last finished",
        "report finished",
        "mlflow finished",
    ]
    observers.on_early_end(outcome_of(KeyboardInterrupt()))
    assert len(notes) == 6, "they have ended"


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt(), "killed"), (OSError("full"), "failed")])
def test_observers_that_have_not_ended_when_the_end_is_interrupted_end_early(error, state) -> None:
    notes: list[str] = []
    observers = Observers([Noting("first", notes), Noting("second", notes, raising(error)), Noting("third", notes)])
    observers.on_begin(RUN, 0)
    notes.clear()
    with pytest.raises(type(error)):
        observers.on_finish({})
    observers.on_early_end(outcome_of(error))
    assert notes == ["third finished", "second finished", f"second {state}", f"first {state}"]


@pytest.mark.slow
def test_observers_that_hang_or_fail_leave_time_to_the_others_when_a_run_ends_early() -> None:
    notes: list[str] = []

    def fail(outcome: RunOutcome) -> None:
        raise OSError("in the end")

    observers = Observers(
        [
            Noting("first", notes),
            Noting("failing", notes, fail),
            Noting("hanging", notes, lambda _: time.sleep(60)),
        ]
    )
    observers.on_begin(RUN, 0)
    notes.clear()
    started = time.monotonic()
    observers.on_early_end(outcome_of(KeyboardInterrupt()), lambda: notes.append("folder"))
    assert time.monotonic() - started < 10
    assert notes == ["folder", "hanging killed", "failing killed", "first killed"]


def test_an_interrupt_while_a_run_ends_early_still_ends_all_observers() -> None:
    """As a second Ctrl-C while the report of a stopped run is written: MLflow, after it, has to learn of the end."""
    notes: list[str] = []
    patience = []

    def interrupt(_: RunOutcome) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(60)

    observers = Observers(
        [
            Noting("mlflow", notes, lambda outcome: patience.append((outcome.state, outcome.is_hasty))),
            Noting("report", notes, interrupt),
        ]
    )
    observers.on_begin(RUN, 0)
    notes.clear()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        observers.on_early_end(outcome_of(StoppedError("stopped after round 3")))
    assert notes == ["report killed", "mlflow killed"]
    assert patience == [("killed", True)]
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3), asyncio.CancelledError("late")], ids=repr)
def test_no_error_of_a_guarded_observer_ends_a_run(error: BaseException, capsys) -> None:
    def fail(_: object) -> None:
        raise error

    guarded = observer.GuardedObserver("mine", Noting("mine", [], fail))
    guarded.on_end(RunOutcome("finished", {}))
    assert capsys.readouterr().err.startswith("mine failed at the end of the run; the run continues: ")


@pytest.mark.slow
def test_an_observer_sees_the_runs_id_in_mlflow(tmp_path: Path, monkeypatch) -> None:
    ids: list[str] = []
    monkeypatch.setattr(Recorder, "on_begin", lambda self, run, resumed_from: ids.append(run.metadata["run_id"]))
    uri = f"tracking.uri={store_in(tmp_path)}"
    assert ids == [ran(tmp_path / "out", f"tracking.also=[{HERE}:Recorder]", uri, "rounds=1")["run_id"]] != [""]


@pytest.mark.slow
def test_an_interrupt_after_the_last_round_keeps_the_results_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch
) -> None:
    from raysim.report import write

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "of_ended", interrupted)
    with pytest.raises(StoppedError, match=r"interrupted after the last round; all results are in .*`raysim resume"):
        ran(tmp_path / "out")
    noted = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (noted["finished"], noted.get("state")) == (False, None)
    monkeypatch.undo()
    with locked_run(str(tmp_path / "out")) as stopped:
        summary = experiment.run(prepare(stopped), InProcessRunner(), time.monotonic())
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (tmp_path / "out" / "report.html").is_file()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished"] is True


@pytest.mark.slow
def test_a_report_that_is_lost_is_an_error_of_a_run_that_has_finished(tmp_path: Path, monkeypatch, capsys) -> None:
    from raysim.report import write

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a figure went wrong")

    monkeypatch.setattr(write, "render", broken)
    with pytest.raises(
        ReportLostError, match="could not be made: ZeroDivisionError: a figure went wrong; all results"
    ):
        ran(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished"] is True


@pytest.mark.slow
def test_the_observer_of_the_documentation_follows_a_run(tmp_path: Path, monkeypatch) -> None:
    page = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    _, code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_observers.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    summary = ran(tmp_path / "out", "tracking.also=[my_observers:BestRound]")
    expected = f"best {summary['best_accuracy']:.4f}, last {summary['accuracy']:.4f}\n"
    assert (tmp_path / "out" / "best.txt").read_text() == expected
