"""Runs a sweep: its trials on Ray Tune, what becomes of them, and the table at its end."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.analysis.comparison import compare
from raysim.analysis.comparison.compare import Compared
from raysim.analysis.sweep import best, tuning
from raysim.analysis.sweep.display import SweepDisplay
from raysim.analysis.sweep.journal import FAILED, Entry, Journal, results_of
from raysim.analysis.sweep.plan import Sweep
from raysim.analysis.sweep.record import SweepRecord
from raysim.analysis.sweep.scored import metrics_of
from raysim.core.errors import RunFailedError, SettingError, StoppedError, TrackingLostError, nearest_first
from raysim.core.log import say, warn
from raysim.experiment.start import data_digests
from raysim.simulation.build import build_scenario


@dataclass(frozen=True, slots=True, eq=False)
class _Listening:
    """Writes down what becomes of trials, and shows it."""

    record: SweepRecord
    display: SweepDisplay

    def started(self, place: int) -> None:
        self.display.started(place)

    def result(self, entry: Entry) -> None:
        self.record.result(self.record.sweep.trials[entry.trial], entry)
        self.display.told(entry)

    def ended(self, entry: Entry, details: str) -> None:
        self.record.end_of(self.record.sweep.trials[entry.trial], entry)
        if details:
            warn(details.rstrip())
        self.display.told(entry)


def run(record: SweepRecord, digests: Mapping[str, str]) -> None:
    """Run the trials that are left; each is written down as it goes, whatever becomes of the others.

    Args:
        record: Of the sweep.
        digests: Hashes of the split; see `check`.

    Raises:
        SettingError: If the cluster has no room for a trial; nothing has been trained then.
        RunFailedError: If trials failed, once all others are over.
        StoppedError: If Ctrl-C asked for an end, and what has come out is written down.
        KeyboardInterrupt: If the sweep is to end at once.
        TrackingLostError: If MLflow could not be told of all of it.
    """
    sweep, journal = record.sweep, record.journal
    left = journal.unfinished
    over = len(sweep.trials) - len(left)
    say(f"files in {record.folder}{f'; trials that are over: {over}' if over else ''}")
    with tuning.started_ray(sweep) if left else nullcontext():
        try:
            _play(record, digests, left)
        except KeyboardInterrupt:
            record.leave()
            raise
    failed = _failed(journal)
    if failed:
        told = "; ".join(f"{sweep.trials[place].title}: {journal.standings[place].failure}" for place in failed)
        raise RunFailedError(0, -1, f"{len(failed)} of {len(sweep.trials)} trials failed ({told})")


def _play(record: SweepRecord, digests: Mapping[str, str], left: Sequence[int]) -> None:
    sweep, journal = record.sweep, record.journal
    try:
        record.begin(digests)
        before = results_of(journal.entries)
        with SweepDisplay(sweep, journal) as display:
            if left:
                tuning.run(sweep, record.folder, before, left, _Listening(record, display))
        if not all(standing.ended for standing in journal.standings):
            raise StoppedError("interrupted")
        _complete(record)
    except Exception as error:
        _leave(record, error)
        raise


def _failed(journal: Journal) -> list[int]:
    return [place for place, standing in enumerate(journal.standings) if standing.ended == FAILED]


def _complete(record: SweepRecord) -> None:
    """Write down and tell all there is to a sweep whose trials are over."""
    try:
        record.catch_up()
        best.complete(record)
        _finish(record, "FAILED" if _failed(record.journal) else "FINISHED")
    except TrackingLostError as error:
        raise TrackingLostError(
            f"MLflow could not be told of all of the sweep ({error}); all files are in {record.folder}, and "
            "`--resume` with this folder tells it what is missing"
        ) from None


def _leave(record: SweepRecord, error: Exception) -> None:
    """Write down what has come out of a sweep that ends early, and tell MLflow as far as it listens."""
    is_asked, lost = isinstance(error, StoppedError), None
    steps = ([record.catch_up] if is_asked else []) + [lambda: _finish(record, "KILLED" if is_asked else "FAILED")]
    for step in steps:
        try:
            step()
        except (TrackingLostError, SettingError) as reason:
            lost = reason
    if lost is not None and not isinstance(error, TrackingLostError):
        warn(f"MLflow could not be told of all of it, which is made up for when the sweep goes on: {lost}")


def check(sweep: Sweep) -> dict[str, str]:
    """Build the first run without training, and return the hashes of its split.

    Raises:
        SettingError: If it does not fit the data or the model, or a trial will not have the metric.
    """
    _check_metric(sweep)
    return data_digests(build_scenario(sweep.trials[0].runs[0]))


def _check_metric(sweep: Sweep) -> None:
    metric, checked = sweep.settings.metric, set()
    for trial in sweep.trials:
        run = trial.runs[0]
        what_decides = (run.population.model_dump_json(), run.evaluation.client_share, run.data.heldout_share)
        if what_decides in checked:
            continue
        checked.add(what_decides)
        known = metrics_of(run)
        if metric not in known:
            nearest = ", ".join(nearest_first(metric, known)[:5])
            raise SettingError(f"metric={metric!r} is not one that trial {trial.place} will have; nearest: {nearest}")


def _finish(record: SweepRecord, status: str) -> None:
    """Write the tables of what has come out, and end the parent run."""
    if not record.tracker.run_id:
        return
    compared = table_of(record.folder)
    written: dict[str, Path] = {}
    if compared is not None:
        compare.write(compared, record.folder)
        written = {name: record.folder / name for name in compare.FILES}
    record.end(status, written)


def table_of(folder: Path) -> Compared | None:
    """Return a sweep's trials side by side; None where none has been scored."""
    try:
        return compare.compare([str(folder)])
    except SettingError:
        return None


def content_of(record: SweepRecord) -> dict[str, Any]:
    """Return how a sweep stands, ready for JSON."""
    sweep, standings = record.sweep, record.journal.standings
    place = record.journal.best(sweep.settings.mode)
    trials = [
        {
            "trial": trial.place, "values": dict(trial.values), "state": standing.ended or "unfinished",
            "rounds": standing.round, "value": standing.value, "accuracy": standing.accuracy,
            "failure": standing.failure,
        }
        for trial, standing in zip(sweep.trials, standings, strict=True)
    ]  # fmt: skip
    return {
        "title": sweep.title, "metric": sweep.settings.metric, "mode": sweep.settings.mode, "trials": trials,
        "best": None if place is None else trials[place], "run_id": record.tracker.run_id,
        "output_dir": str(record.folder), "tracking_uri": record.tracker.uri,
        "experiment_id": record.tracker.experiment_id,
    }  # fmt: skip
