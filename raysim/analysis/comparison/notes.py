"""Write the notes below the table of a comparison: how to read it, and what limits the comparison."""

from collections.abc import Sequence

from raysim.analysis.comparison.rows import Row
from raysim.analysis.tables.columns import ACCURACIES, LAST_MEAN, SEEDS, STAR, Column
from raysim.analysis.tables.means import LAST, LEVEL


def how_to_read(baseline: str, columns: Sequence[Column]) -> str:
    """Return how the table is read.

    Args:
        baseline: The label of the row that others are compared with.
        columns: The columns of the table.
    """
    is_starred = any(STAR in cell for column in columns if not column.is_text for cell in column.cells)
    star = f" {STAR} Only over the seeds that both rows have (and that reached the target)." * is_starred
    front = " On front: no row is as accurate for fewer MB, simulated s or J." * any(
        column.lower == "on front" for column in columns
    )
    has_last_mean = any(column.lower == ACCURACIES[LAST_MEAN] for column in columns)
    last = f", of the last {LAST}" * has_last_mean
    return (
        f"Test accuracy: means over seeds of the last evaluation{last}, and of the best one; {SEEDS}. Points to "
        f"{baseline}: mean difference over the seeds of both, with its {100 * LEVEL:.0f} % t-interval. In brackets: "
        f"per cent of {baseline}, mean over the seeds of both.{star} The cost of a target is the mean of the runs "
        f"that reached it, so many of all.{front}"
    )


def limits_of(rows: Sequence[Row], baseline: Row) -> list[str]:
    """Return what limits the comparison of rows: other data, other seeds, runs that did not finish."""
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
