"""Rows of a comparison: runs that differ in nothing but their seed, named by what sets them apart from the others."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raysim.analysis.comparison.run_record import RunRecord
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError, nearest_first

NOT_COMPARED = (
    "seed", "experiment", "executor", "tracking", "checkpoint", "costs", "diagnostics", "evaluation.targets",
    "training.pack",
)  # fmt: skip
"""Settings that make no row of their own: where a run is played, what is told of it, and how it is kept."""
SHOWN_SETTINGS = 4
"""Settings that are shown of a row besides those in its label."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        label: The method, with the settings that set it apart from other rows of the same method.
        method: As in `method.name`.
        settings: All settings that are not the same in all rows, by dotted name; the method apart.
        other_settings: Those that the label does not tell.
        runs: In the order of their seeds.
    """

    label: str
    method: str
    settings: Mapping[str, str]
    other_settings: Mapping[str, str]
    runs: Sequence[RunRecord]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [run.settings.seed for run in self.runs]

    @property
    def counted(self) -> Sequence[RunRecord]:
        """The runs that its figures are about: those that have ended as they should; if none has, all."""
        return [run for run in self.runs if not run.state] or self.runs

    @property
    def is_whole(self) -> bool:
        """Whether its figures are those of runs that have ended as they should."""
        return any(not run.state for run in self.runs)


def rows_of(records: Sequence[RunRecord]) -> tuple[list[Row], list[str]]:
    """Return one row for all runs that differ only in their seed, in the order in which they are given, and notes.

    Of runs that repeat a seed the one that got farther counts; a note names the others.
    """
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
    settings = [dict(group) for group in groups]
    labels = [_given_label(by_seed.values()) for by_seed in groups.values()]
    names = {name for own in settings for name in own if any(name not in other or other[name] != own[name]
                                                             for other in settings)}  # fmt: skip
    rows = []
    for own, label, by_seed in zip(settings, labels, groups.values(), strict=True):
        differing = _differing(own, settings)
        among = [other for other in settings if other["method.name"] == own["method.name"]]
        told = {} if label and labels.count(label) == 1 else _telling(own, among)
        name = label if label and not told else ", ".join([own["method.name"], *described(told, names)])
        others = {key: value for key, value in differing.items() if key not in told}
        runs = [by_seed[seed] for seed in sorted(by_seed)]
        rows.append(Row(name, own["method.name"], differing, others, runs))
    return rows, notes


def compared(settings: ExperimentSettings) -> dict[str, str]:
    """Return the settings that decide which row a run belongs to, by dotted name."""
    return {
        name: value
        for name, value in sorted(loader.flatten(settings).items())
        if not any(name == each or name.startswith(f"{each}.") for each in NOT_COMPARED)
    }


def _progress(record: RunRecord) -> tuple[bool, int]:
    return not record.state, record.num_rounds


def _given_label(records: Iterable[RunRecord]) -> str | None:
    labels = {record.label for record in records}
    return labels.pop() if len(labels) == 1 else None


def _differing(own: Mapping[str, str], all_settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return those of a row's own settings that not all rows have, by name; null says nothing."""
    return {
        name: value
        for name, value in own.items()
        if name != "method.name" and value != "None" and any(other.get(name) != value for other in all_settings)
    }


def _telling(own: Mapping[str, str], among: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the settings that set a row apart from others: all that differ, or as few of many as that takes."""
    differing = _differing(own, among)
    if len(differing) <= SHOWN_SETTINGS:
        return differing
    left, names = [other for other in among if other != own], sorted(set().union(*among))
    told: dict[str, str] = {}
    while left:
        name = max(names, key=lambda each: (_apart(each, own, left), own.get(each, "None") != "None"))
        told[name] = own.get(name, "None")
        left = [other for other in left if other.get(name) == own.get(name)]
    return told


def _apart(name: str, own: Mapping[str, str], others: Sequence[Mapping[str, str]]) -> int:
    return sum(other.get(name) != own.get(name) for other in others)


def described(settings: Mapping[str, str], all_names: Collection[str]) -> list[str]:
    """Return settings as `learning_rate 0.1`; the dotted name stands where the last part alone says two things.

    >>> described({"training.epochs": "2", "server.momentum": "0"}, ["training.momentum", "server.momentum"])
    ['epochs 2', 'server.momentum 0']
    """
    last = [name.rpartition(".")[2] for name in all_names]
    return [
        f"{name if last.count(name.rpartition('.')[2]) > 1 else name.rpartition('.')[2]} {value}"
        for name, value in settings.items()
    ]


def shortly(settings: Mapping[str, str], at_most: int = SHOWN_SETTINGS) -> str:
    """Return settings in one line, the first of them by name."""
    told = described(settings, settings)
    more = len(told) - at_most
    return ", ".join(told[:at_most]) + (f" and {more} more" if more > 0 else "")


def baseline_of(rows: Sequence[Row], wanted: str | None) -> Row:
    """Return the row that others are held against: one that is named, else the first of fedavg, else the first.

    Without a name a row whose runs fell short is it only where all have.

    Raises:
        SettingError: If no row, or more than one, is called so.
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


def notes_of(rows: Sequence[Row], baseline: Row) -> list[str]:
    """Say what stands between rows and their comparison: other data, other seeds, runs that fell short."""
    notes = []
    for what, meaning in (
        ("data", "other data: their accuracies cannot be compared with"),
        ("partition", "other owners of the rows, or other devices, than"),
    ):
        others = [row.label for row in rows if _differs(what, row, baseline)]
        if others:
            notes.append(f"{'; '.join(others)}: {meaning} {baseline.label}")
    others = [f"{row.label} has {_seeds(row)}" for row in rows if row.seeds != baseline.seeds]
    if others:
        notes.append(f"Not the same seeds: {baseline.label} has {_seeds(baseline)}; {'; '.join(others)}")
    for row in rows:
        by_standing: dict[str, list[str]] = {}
        for run in row.runs:
            if run.state:
                by_standing.setdefault(run.standing, []).append(str(run.settings.seed))
        short = [
            f"seed{'s' * (len(seeds) > 1)} {' and '.join(seeds)} {standing}"
            for standing, seeds in by_standing.items()
        ]
        left = f"; its figures are those of the other {len(row.counted)}" if row.is_whole else ""
        if short:
            notes.append(f"{row.label}: {', '.join(short)}{left}")
    return notes


def _seeds(row: Row) -> str:
    return ", ".join(map(str, row.seeds))


def _differs(what: str, row: Row, baseline: Row) -> bool:
    """Whether two rows' hashes differ where their splits should not; without a common split, whether data sets do."""

    def hashes(each: Row) -> dict[int, str]:
        return {run.settings.split_seed: run.digests[what] for run in each.runs if what in run.digests}

    own, others = hashes(row), hashes(baseline)
    shared = own.keys() & others.keys()
    if shared:
        return any(own[split] != others[split] for split in shared)
    return what == "data" and row.runs[0].settings.data.name != baseline.runs[0].settings.data.name
