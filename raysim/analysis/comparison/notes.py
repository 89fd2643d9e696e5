"""Write the notes below the table of a comparison: how to read it, and what limits the comparison."""

from collections.abc import Sequence

from raysim.analysis.comparison.rows import Row
from raysim.analysis.tables.columns import LAST_MEAN, LOWER, SEEDS, STAR, Column
from raysim.analysis.tables.means import LAST, LEVEL
from raysim.config.metric import ACCURACY, PrimaryMetric


def how_to_read(baseline: str, columns: Sequence[Column], metric: PrimaryMetric = ACCURACY) -> str:
    """Return how the table is read.

    Args:
        baseline: The label of the row that others are compared with.
        columns: The columns of the table.
        metric: The metric of the scores.
    """
    is_starred = any(STAR in cell for column in columns if not column.is_text for cell in column.cells)
    star = f" {STAR} Only over the seeds that both rows have (and that reached the target)." * is_starred
    good = "accurate" if metric.name == ACCURACY.name else "good"
    front = f" On front: no row is as {good} for fewer MB, simulated s or J." * any(
        column.lower == "on front" for column in columns
    )
    points = "Points" if metric.is_share else "Difference"
    way = "" if metric.direction == "up" else " (lower is better)"
    has_last_mean = any(column.lower == LOWER[LAST_MEAN] for column in columns)
    last = f", of the last {LAST}" * has_last_mean
    return (
        f"Test {metric.title}{way}: means over seeds of the last evaluation{last}, and of the best one; {SEEDS}. "
        f"{points} to {baseline}: mean difference over the seeds of both, with its {100 * LEVEL:.0f} % t-interval. "
        f"In brackets: per cent of {baseline}, mean over the seeds of both.{star} The cost of a target "
        f"is the mean of the runs that reached it, so many of all.{front}"
    )


def limits_of(rows: Sequence[Row], baseline: Row) -> list[str]:
    """Return what limits the comparison of rows: other data, other seeds, runs that did not finish."""
    notes, name = [], baseline.primary.name
    scores = "accuracies" if name == ACCURACY.name else "scores"
    for what, meaning in (
        ("data", f"other data: their {scores} cannot be compared with"),
        ("partition", "other owners of the rows, or other devices, than"),
    ):
        others = [row.label for row in rows if _differs(what, row, baseline)]
        if others:
            notes.append(f"{'; '.join(others)}: {meaning} {baseline.label}")
    others = [f"{row.label} has {_seeds(row)}" for row in rows if row.seeds != baseline.seeds]
    if others:
        notes.append(f"Not the same seeds: {baseline.label} has {_seeds(baseline)}; {'; '.join(others)}")
    return notes + [note for row in rows if (note := _unfinished(row))]


def _unfinished(row: Row) -> str:
    """Return which runs of a row did not finish; empty if all did."""
    seeds_by_progress: dict[str, list[str]] = {}
    for run in row.runs:
        if run.state:
            seeds_by_progress.setdefault(run.progress, []).append(str(run.settings.seed))
    if not seeds_by_progress:
        return ""
    parts = [
        f"seed{'s' * (len(seeds) > 1)} {' and '.join(seeds)} {progress}"
        for progress, seeds in seeds_by_progress.items()
    ]
    others = f"; its figures are those of the other {len(row.counted)}" if row.is_whole else ""
    return f"{row.label}: {', '.join(parts)}{others}"


def _seeds(row: Row) -> str:
    return ", ".join(map(str, row.seeds))


def _differs(what: str, row: Row, baseline: Row) -> bool:
    """Whether hashes differ of runs with the same split seed; if there are none, whether the data sets do."""

    def hashes(each: Row) -> dict[int, str]:
        return {run.settings.split_seed: run.digests[what] for run in each.runs if what in run.digests}

    own, others = hashes(row), hashes(baseline)
    shared = own.keys() & others.keys()
    if shared:
        return any(own[split] != others[split] for split in shared)
    return what == "data" and row.runs[0].settings.data.name != baseline.runs[0].settings.data.name
