"""Tune the rows of a comparison: each keeps the values of the grid that do best on validation rows."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

from raysim.analysis.study.grid import trials_of
from raysim.analysis.study.one_run import Outcome
from raysim.analysis.study.plan import Comparison, Run
from raysim.analysis.study.settings import ComparisonSettings, MethodEntry, TuneSettings
from raysim.config.metric import ACCURACY, PrimaryMetric


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One combination of values in a row, and its score.

    Attributes:
        entry: The row.
        values: The values, by setting.
        scores: On validation rows, one per seed.
        failure: Why a seed did not finish; empty if all did.
    """

    entry: MethodEntry
    values: dict[str, Any]
    scores: tuple[float, ...]
    failure: str = ""

    @property
    def score(self) -> float | None:
        """The mean over seeds; None: a seed failed."""
        return None if self.failure else statistics.fmean(self.scores)


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """The trials of a comparison, row by row.

    Attributes:
        before: The comparison as it was given.
        grid: Its grid.
        trials: The trials of all rows that are tuned.
        metric: The metric of their scores.
    """

    before: ComparisonSettings
    grid: TuneSettings
    trials: tuple[Trial, ...]
    metric: PrimaryMetric = ACCURACY

    def best(self, entry: MethodEntry) -> Trial | None:
        """Return the best trial of a row, the first of equal ones, a failed one last; None: it is not tuned."""
        own = [trial for trial in self.trials if trial.entry is entry]
        sign = self.metric.sign
        return max(own, key=lambda trial: -inf if trial.score is None else sign * trial.score, default=None)

    @property
    def chosen(self) -> list[Trial]:
        """The best trial of each row that is tuned."""
        return [best for entry in self.before.methods if (best := self.best(entry))]

    @property
    def settings(self) -> ComparisonSettings:
        """The comparison in which each row has the values of its best trial."""
        entries = [
            entry.model_copy(update={"set": entry.set | best.values}) if (best := self.best(entry)) else entry
            for entry in self.before.methods
        ]
        return self.before.model_copy(update={"methods": entries, "tune": None})

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per trial, for CSV and JSON; a setting that the row does not tune is None."""
        chosen = self.chosen
        return [
            {
                "label": trial.entry.title,
                **{name: trial.values.get(name) for name in self.grid.grid},
                self.metric.recorded("validation_primary"): trial.score,
                "is_chosen": trial in chosen,
                "failure": trial.failure,
            }
            for trial in self.trials
        ]

    @property
    def note(self) -> str:
        """How the rows were tuned, and which of them would perhaps do better beyond the grid."""
        seeds = ", ".join(str(seed) for seed in self.grid.seeds)
        grid = "; ".join(f"{name}: {', '.join(map(json.dumps, values))}" for name, values in self.grid.grid.items())
        failed = [trial.entry.title for trial in self.chosen if trial.failure]
        edges = [edge for trial in self.chosen if not trial.failure for edge in self._edges_of(trial)]
        return (
            f"Rows without a value of their own were tuned by {self.metric.title} on validation rows, the mean of "
            f"the last half of the evaluations of {self.grid.rounds} rounds (seeds {seeds}), over {grid}."
            + (f" At the edge of the grid: {', '.join(edges)}." if edges else "")
            + (f" With every value a run failed, so that the first is taken: {', '.join(failed)}." if failed else "")
        )

    def _edges_of(self, trial: Trial) -> list[str]:
        found = []
        for name, value in trial.values.items():
            values = self.grid.grid[name]
            if all(map(_is_number, values)) and len(values) > 1 and value in (min(values), max(values)):
                found.append(f"{trial.entry.title} ({name.rpartition('.')[2]} {value})")
        return found


def not_of_numbers(comparison: Comparison) -> list[Run]:
    """Return the first run of each trial with a value that is no number: whether it fits, building it shows."""
    tune = comparison.settings.tune
    if tune is None:
        return []
    firsts = comparison.trials[:: len(tune.seeds)]
    values = [values for _, values in trials_of(comparison.settings)]
    return [run for run, given in zip(firsts, values, strict=True) if not all(map(_is_number, given.values()))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def judged(
    settings: ComparisonSettings, scores: Iterable[tuple[int, float | str]], metric: PrimaryMetric = ACCURACY
) -> Tuning:
    """Return the trials of a comparison from the results of their runs, in any order.

    Args:
        settings: The comparison that is tuned.
        scores: The index of each run in `Comparison.trials`, and its score on validation rows or its failure.
        metric: The metric of the scores.
    """
    reached = dict(scores)
    if settings.tune is None:
        raise ValueError("a comparison without a grid has no trials")
    each = len(settings.tune.seeds)
    found = []
    for index, (entry, values) in enumerate(trials_of(settings)):
        own = [reached[number] for number in range(index * each, (index + 1) * each)]
        failure = next((each for each in own if isinstance(each, str)), "")
        known = () if failure else tuple(each for each in own if not isinstance(each, str))
        found.append(Trial(entry, values, known, failure))
    return Tuning(settings, settings.tune, tuple(found), metric)


def validation_score(outcome: Outcome) -> float:
    """Return the mean score on validation rows over the last half of a run's evaluations."""
    scores = [report.validation.primary for report in outcome.reports if report.validation is not None]
    return statistics.fmean(scores[len(scores) // 2 :])
