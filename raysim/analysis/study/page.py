"""Write the page of a study from its results file alone: a table for each cell, the questions, and where they ran."""

import itertools
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raysim.analysis.study import table
from raysim.analysis.study.cells import Study
from raysim.analysis.study.results import RUN, TRIAL, VALIDATION, Result, of_runs
from raysim.analysis.study.settings import ComparisonSettings
from raysim.analysis.tables.columns import Column, points, score
from raysim.analysis.tables.means import paired
from raysim.analysis.tables.text import table_of
from raysim.config.metric import ACCURACY, FIELD, PrimaryMetric, metric_in, metric_of_any

FIGURE = "accuracy.svg"


@dataclass(frozen=True, slots=True, eq=False)
class CellTable:
    """The rows of a cell that have results.

    Attributes:
        name: The cell.
        rows: As `table.rows_of` gives them.
        figures: The figures of its runs that did not fail.
        runs: The results of its runs.
        trials: The results of its trials.
    """

    name: str
    rows: list[table.Row]
    figures: list[table.Figures]
    runs: list[Result]
    trials: list[Result]


def tables_of(study: Study, results: Sequence[Result], overrides: Sequence[str] = ()) -> list[CellTable]:
    """Return the table of each cell that has results, in the order of the file.

    Results of other settings than those of the study are left out.

    Args:
        study: The study.
        results: The lines of its results file, or of another one.
        overrides: Settings that replaced those of all rows when they were made.
    """
    found = []
    for name in study.cells:
        comparison = study.tuned(name, results, overrides)
        if comparison is None:
            continue
        runs = _of_one_split(of_runs(results, name, RUN, comparison.runs).values())
        labels = {each.row for each in runs}
        entries = [entry for entry in comparison.settings.methods if entry.title in labels]
        if entries:
            figures = [dict(each.figures) for each in runs]
            rows = table.rows_of(entries, figures, comparison.base.evaluation.targets)
            trials = list(of_runs(results, name, TRIAL, comparison.trials).values())
            found.append(CellTable(name, rows, [run for run in figures if not run["failure"]], runs, trials))
    return found


def _of_one_split(results: Collection[Result]) -> list[Result]:
    """Return the results that have the split of the latest one."""
    latest = max(results, key=lambda each: each.ended, default=None)
    return [each for each in results if latest and each.split == latest.split]


def text(study: Study, tables: Sequence[CellTable], figure: str = FIGURE) -> str:
    """Return the page in Markdown; numbers come from the tables alone.

    Args:
        study: The study.
        tables: Its tables.
        figure: The name of the figure's file.
    """
    parts = [f"# {study.settings.title}", study.settings.about.strip(), _command(study)]
    if tables:
        parts.append(f"![Accuracy of each row, with the 95 % interval of its mean]({figure})")
    parts += _answers(study, tables)
    for each in tables:
        parts += [f"## {each.name}", *_about(study, each), table_of(table.columns_of(each.rows))]
        parts += [f"- {note}" for note in table.notes_of(each.rows)[1:]]
        parts += _tuned(study.cells[each.name], each)
    if tables:
        parts += [
            "## How to read the tables",
            table.how_to_read(metric_in(tables[0].rows[0])),
            "## Where it ran",
            _surroundings(tables),
        ]
    return "\n\n".join(parts) + "\n"


def _command(study: Study) -> str:
    return (
        f"```\nraysim study studies/{study.folder.resolve().name} --set executor.kind=ray\n```\n\n"
        "Runs that are in `results.jsonl` are not repeated. `--cells A,B` runs some cells. "
        "This page is made from `study.yaml` and `results.jsonl` by `raysim study --page`."
    )


def _about(study: Study, cell: CellTable) -> list[str]:
    settings = study.cells[cell.name]
    lent = study.settings.cells[cell.name].tuned_as
    seeds = ", ".join(str(seed) for seed in settings.seeds)
    given = study.settings.cells[cell.name].about.strip()
    values = f" Values of the grid as in `{lent}`." if lent else ""
    return [*([given] if given else []), f"Seeds {seeds}.{values}"]


def _answers(study: Study, tables: Sequence[CellTable]) -> list[str]:
    """Return the table of questions; one whose rows have no results yet is left out."""
    by_name = {each.name: each for each in tables}
    lines, metrics = [], set[PrimaryMetric]()
    for contrast in study.settings.contrasts:
        cell, label = contrast.other(study.cells)
        mine, theirs = by_name.get(contrast.cell), by_name.get(cell)
        if mine is None or theirs is None:
            continue
        leads = table.leading_of([*mine.figures, *theirs.figures])
        own, other = _by_seed(mine, contrast.row, leads), _by_seed(theirs, label, leads)
        if own and other:
            metric = metric_in(mine.figures[0])
            metrics.add(metric)
            difference = paired(own, other, metric.scale) | metric.entries
            lines.append((contrast, difference, len(difference["points_seeds"])))
    if not lines:
        return []
    is_share = all(metric.is_share for metric in metrics)
    columns = [
        Column("", "question", [contrast.question for contrast, _, _ in lines], is_text=True),
        Column("", "cell", [contrast.cell for contrast, _, _ in lines], is_text=True),
        Column("", "row", [contrast.row for contrast, _, _ in lines], is_text=True),
        Column("", "against", [contrast.against for contrast, _, _ in lines], is_text=True),
        Column("", "points" if is_share else "difference", [points(difference) for _, difference, _ in lines]),
        Column("", "seeds", [str(seeds) for _, _, seeds in lines]),
    ]
    of = "in points of test accuracy" if metrics == {ACCURACY} else "of the primary metric, shares in points"
    about = f"Mean paired differences {of}, with their 95 % t-intervals over seeds."
    return ["## Questions", table_of(columns), about]


def _by_seed(cell: CellTable, label: str, leads: str) -> dict[int, float]:
    return {run["seed"]: run[leads] for run in cell.figures if run["label"] == label and run[leads] is not None}


def _tuned(settings: ComparisonSettings, cell: CellTable) -> list[str]:
    """Return how the rows were tuned: the grid, and each trial's score on validation rows."""
    if settings.tune is None or not cell.trials:
        return []
    grid = "; ".join(
        f"`{name}`: {', '.join('none' if value is None else str(value) for value in values)}"
        for name, values in settings.tune.grid.items()
    )
    seeds = ", ".join(map(str, settings.tune.seeds))
    metric = _metric_of(cell.trials)
    scores = {row: list(own) for row, own in itertools.groupby(cell.trials, lambda each: each.row)}
    columns = [
        Column("", "trial", list(scores), is_text=True),
        Column(
            "",
            "validation %" if metric.is_share else "validation",
            [_validation(own, metric) for own in scores.values()],
        ),
    ]
    head = (
        f"Each row's own values were chosen on validation rows, in {settings.tune.rounds} rounds with seed {seeds}, "
        f"from {grid}."
    )
    return [head, f"<details><summary>Trials</summary>\n\n{table_of(columns)}\n\n</details>"]


def _metric_of(trials: Sequence[Result]) -> PrimaryMetric:
    """Return the metric of trials, by the name of their figure."""
    before = VALIDATION.removesuffix(FIELD)
    names = [name.removeprefix(before) for each in trials for name in each.figures if name.startswith(before)]
    return metric_of_any(names[0]) if names else ACCURACY


def _validation(trials: Sequence[Result], metric: PrimaryMetric) -> str:
    if any(each.failure for each in trials):
        return "failed"
    name = metric.recorded(VALIDATION)
    return score({"mean": statistics.fmean(each.figures[name] for each in trials), "std": None}, metric)


def _surroundings(tables: Sequence[CellTable]) -> str:
    """Return the machines, versions and commits of the runs, and the hours that they took."""
    results = [each for cell in tables for each in (*cell.runs, *cell.trials)]
    machines = sorted(
        {
            ", ".join(f"{name.removeprefix('version.')} {value}" for name, value in each.machine.items())
            for each in results
        }
    )
    commits = sorted({each.commit for each in results if each.commit})
    hours = sum(each.wall_s for each in results) / 3600
    runs = sum(each.kind == RUN for each in results)
    return "\n".join(
        [
            f"- {runs} runs and {len(results) - runs} trials, {hours:.1f} processor hours.",
            *(f"- {machine}." for machine in machines),
            f"- Commits {', '.join(f'`{commit[:12]}`' for commit in commits) or 'unknown'}.",
        ]
    )
