"""Group runs into the rows of a comparison: the runs of a row differ in nothing but their seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raysim.analysis.comparison.labels import described, differing, distinguishing
from raysim.analysis.comparison.run_record import RunRecord
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import PrimaryMetric
from raysim.core.errors import SettingError, nearest_first

NOT_COMPARED = (
    "seed", "experiment", "executor", "tracking", "checkpoint", "costs", "diagnostics", "evaluation.targets",
    "training.pack",
)  # fmt: skip
"""Settings that do not make another row: where a run is executed, what is logged of it, and how it is kept."""

Settings = dict[str, str]
"""Settings as text by dotted name."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: The method, with the settings that distinguish it from other rows of the same method.
        method: As in `method.name`.
        settings: All settings that are not the same in all rows, by dotted name, without the method.
        other_settings: Those of them that are not part of the label.
        runs: The runs, in the order of their seeds.
    """

    label: str
    method: str
    settings: Mapping[str, str]
    other_settings: Mapping[str, str]
    runs: Sequence[RunRecord]

    @property
    def primary(self) -> PrimaryMetric:
        """The metric by which its runs are scored."""
        return self.runs[0].primary

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return [run.settings.seed for run in self.runs]

    @property
    def counted(self) -> Sequence[RunRecord]:
        """The runs whose figures are shown: those that finished; if none has, all."""
        return [run for run in self.runs if not run.state] or self.runs

    @property
    def is_whole(self) -> bool:
        """Whether its figures are those of runs that finished."""
        return any(not run.state for run in self.runs)


def rows_of(records: Sequence[RunRecord]) -> tuple[list[Row], list[str]]:
    """Return the rows that runs belong to, in the order in which these are given, and notes.

    Of runs with the same settings and seed the one that got farther counts; a note names the others.
    """
    groups, notes = _grouped(records)
    settings = [dict(key) for key in groups]
    labels = [_given_label(by_seed.values()) for by_seed in groups.values()]
    names = {name for own in settings for name in own if any(other.get(name) != own[name] for other in settings)}
    rows = []
    for own, label, by_seed in zip(settings, labels, groups.values(), strict=True):
        method, all_differing = own["method.name"], differing(own, settings)
        in_label: Settings = {}
        if not label or labels.count(label) > 1:
            in_label = distinguishing(own, [other for other in settings if other["method.name"] == method])
        name = label if label and not in_label else ", ".join([method, *described(in_label, names)])
        others = {key: value for key, value in all_differing.items() if key not in in_label}
        rows.append(Row(name, method, all_differing, others, [by_seed[seed] for seed in sorted(by_seed)]))
    return rows, notes


def _grouped(
    records: Sequence[RunRecord],
) -> tuple[dict[tuple[tuple[str, str], ...], dict[int, RunRecord]], list[str]]:
    """Return the runs of each row by seed, by the settings of the row, and notes on runs that are left out."""
    groups: dict[tuple[tuple[str, str], ...], dict[int, RunRecord]] = {}
    notes = []
    for record in records:
        by_seed = groups.setdefault(tuple(compared(record.settings).items()), {})
        other = by_seed.get(record.settings.seed)
        kept = record if other is None or _progress(record) > _progress(other) else other
        by_seed[record.settings.seed] = kept
        if other is not None:
            left = other if kept is record else record
            notes.append(f"Left out is {left.name}, which repeats {kept.name}: same settings, same seed")
    return groups, notes


def compared(settings: ExperimentSettings) -> Settings:
    """Return the settings that decide which row a run belongs to, by dotted name."""
    return {
        name: value
        for name, value in sorted(loader.flatten(settings).items())
        if not any(name == each or name.startswith(f"{each}.") for each in NOT_COMPARED)
    }


def _progress(record: RunRecord) -> tuple[bool, int]:
    return not record.state, record.num_rounds


def _given_label(records: Iterable[RunRecord]) -> str | None:
    """Return the label that all runs have from their comparison; None if they have no common one."""
    labels = {record.label for record in records}
    return labels.pop() if len(labels) == 1 else None


def baseline_of(rows: Sequence[Row], wanted: str | None) -> Row:
    """Return the row that others are compared with: the named one, else the first of fedavg, else the first.

    Without a name, a row without finished runs is chosen only if no row has any.

    Raises:
        SettingError: If no row, or more than one, has the name.
    """
    if wanted is None:
        able = [row for row in rows if row.is_whole] or rows
        return next((row for row in able if row.method == "fedavg"), able[0])
    found = [row for row in rows if row.label == wanted] or [row for row in rows if row.method == wanted]
    if len(found) != 1:
        known = ", ".join(repr(label) for label in nearest_first(wanted, [row.label for row in rows])[:5])
        what = "is no row" if not found else f"is {len(found)} rows"
        raise SettingError(f"--baseline={wanted!r} {what}; rows, nearest first: {known}")
    return found[0]
