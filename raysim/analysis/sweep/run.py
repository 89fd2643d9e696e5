"""Run a sweep: its trials on Ray Tune, then the best trial's reports and models, and the table of all trials."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysim.analysis.comparison import compare
from raysim.analysis.comparison.compare import Compared
from raysim.analysis.sweep import best, tuning
from raysim.analysis.sweep.display import SweepDisplay
from raysim.analysis.sweep.journal import FAILED, Entry, Journal, results_of
from raysim.analysis.sweep.metrics import comparable_metrics, primary_of, rows_of
from raysim.analysis.sweep.plan import Sweep
from raysim.analysis.sweep.writer import SweepWriter
from raysim.core.errors import RunFailedError, SettingError, StoppedError, TrackingLostError, nearest_first
from raysim.core.log import info, warning
from raysim.experiment.start import data_digests
from raysim.simulation import records
from raysim.simulation.build import build_scenario


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    """Writes and shows the results of trials."""

    writer: SweepWriter
    display: SweepDisplay

    def started(self, trial: int) -> None:
        self.display.started(trial)

    def result(self, entry: Entry) -> None:
        self.writer.add_result(self.writer.sweep.trials[entry.trial], entry)
        self.display.show(entry)

    def ended(self, entry: Entry, details: str) -> None:
        self.writer.add_end(self.writer.sweep.trials[entry.trial], entry)
        if details:
            warning(details.rstrip())
        self.display.show(entry)


def run(writer: SweepWriter, digests: Mapping[str, str]) -> None:
    """Run the trials that are left; each result is written as it arrives, whatever happens to other trials.

    Args:
        writer: Writes the sweep.
        digests: The hashes of the split; see `check`.

    Raises:
        SettingError: If the cluster has no room for a trial; nothing has been trained then.
        RunFailedError: If trials failed, once all others are over.
        StoppedError: If Ctrl-C stopped the sweep, and its results are written.
        KeyboardInterrupt: If the sweep has to end at once.
        TrackingLostError: If MLflow lacks some of the results.
    """
    sweep, journal = writer.sweep, writer.journal
    left = journal.unfinished
    over = len(sweep.trials) - len(left)
    info(f"files in {writer.folder}{f'; trials that are over: {over}' if over else ''}")
    with tuning.started_ray(sweep) if left else nullcontext():
        try:
            _run_trials(writer, digests, left)
        except KeyboardInterrupt:
            writer.abort()
            raise
    failed = _failed(journal)
    if failed:
        named = "; ".join(f"{sweep.trials[trial].title}: {journal.standings[trial].failure}" for trial in failed)
        raise RunFailedError(0, -1, f"{len(failed)} of {len(sweep.trials)} trials failed ({named})")


def _run_trials(writer: SweepWriter, digests: Mapping[str, str], left: Sequence[int]) -> None:
    sweep, journal = writer.sweep, writer.journal
    try:
        writer.begin(digests)
        before = results_of(journal.entries)
        with SweepDisplay(sweep, journal) as display:
            if left:
                tuning.run(sweep, writer.folder, before, left, _Listener(writer, display))
        if not all(standing.ended for standing in journal.standings):
            raise StoppedError("interrupted")
        _complete(writer)
    except Exception as error:
        _abort(writer, error)
        raise


def _failed(journal: Journal) -> list[int]:
    return [trial for trial, standing in enumerate(journal.standings) if standing.ended == FAILED]


def _complete(writer: SweepWriter) -> None:
    """Write and log everything that is left of a sweep whose trials are over."""
    try:
        writer.runs.close_all()
        best.complete(writer)
        _finish(writer, "FAILED" if _failed(writer.journal) else "FINISHED")
    except TrackingLostError as error:
        raise TrackingLostError(
            f"MLflow lacks some of the results of the sweep ({error}); all files are in {writer.folder}, and "
            "`--resume` with this folder logs what is missing"
        ) from None


def _abort(writer: SweepWriter, error: Exception) -> None:
    """Write the results of a sweep that ends early, and log them as far as MLflow is available."""
    is_stopped, lost = isinstance(error, StoppedError), None

    def finish() -> None:
        _finish(writer, "KILLED" if is_stopped else "FAILED")

    for step in (writer.runs.close_all, finish) if is_stopped else (finish,):
        try:
            step()
        except (TrackingLostError, SettingError) as reason:
            lost = reason
    if lost is not None and not isinstance(error, TrackingLostError):
        warning(f"MLflow lacks some of the results, which are logged when the sweep is resumed: {lost}")


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
        shares = (run.evaluation.client_share, run.data.heldout_share)
        decisive = (run.population.model_dump_json(), *shares, tuple(run.task.metrics))
        if decisive in checked:
            continue
        checked.add(decisive)
        known = comparable_metrics(run)
        if metric not in known:
            nearest = ", ".join(nearest_first(metric, known)[:5])
            raise SettingError(f"metric={metric!r} is not one that trial {trial.index} will have; nearest: {nearest}")


def _finish(writer: SweepWriter, status: str) -> None:
    """Write the comparison of the trials, and end the run of the sweep."""
    if not writer.tracker.run_id:
        return
    compared = table_of(writer.folder)
    written: dict[str, Path] = {}
    if compared is not None:
        compare.write(compared, writer.folder)
        written = {name: writer.folder / name for name in compare.FILES}
    best_trial = writer.journal.best(writer.sweep.mode)
    writer.end(status, written, {} if best_trial is None else test_score_of(writer, best_trial))


def table_of(folder: Path) -> Compared | None:
    """Return the comparison of the trials of a sweep; None if no round has been scored."""
    try:
        return compare.compare([str(folder)])
    except SettingError:
        return None


def test_score_of(writer: SweepWriter, trial: int) -> dict[str, float]:
    """Return the last test score of a trial, the mean over its seeds, where trials have validation rows.

    Only that of the best trial is reported; without validation rows it is the score by which trials are shown.
    """
    sweep, name, found = writer.sweep, writer.sweep.primary.name, []
    for run in sweep.trials[trial].runs if sweep.base.data.validation_share else ():
        table = sweep.trials[trial].folder_of(run, writer.folder) / "rounds.parquet"
        if not table.is_file():
            return {}
        scores = records.read(table, (name,))[name].astype(np.float64)
        found += scores[~np.isnan(scores)][-1:].tolist()
    return {f"test_{name}": statistics.fmean(found)} if found else {}


def content_of(writer: SweepWriter) -> dict[str, Any]:
    """Return the results of a sweep, ready for JSON."""
    sweep, standings = writer.sweep, writer.journal.standings
    name = sweep.primary.name
    best_trial = writer.journal.best(sweep.mode)
    trials = [
        {
            "trial": trial.index,
            "values": dict(trial.values),
            "state": standing.ended or "unfinished",
            "rounds": standing.round,
            "value": standing.value,
            name: standing.primary,
            "failure": standing.failure,
        }
        for trial, standing in zip(sweep.trials, standings, strict=True)
    ]
    return {
        "title": sweep.title,
        "metric": sweep.settings.metric,
        "metric_is_of": rows_of(sweep.settings.metric, sweep.primary) or None,
        "mode": sweep.mode,
        **sweep.primary.entries,
        f"{name}_is_of": rows_of(primary_of(sweep.base), sweep.primary),
        "trials": trials,
        "best": None if best_trial is None else trials[best_trial] | test_score_of(writer, best_trial),
        "run_id": writer.tracker.run_id,
        "output_dir": str(writer.folder),
        "tracking_uri": writer.tracker.uri,
        "experiment_id": writer.tracker.experiment_id,
    }
