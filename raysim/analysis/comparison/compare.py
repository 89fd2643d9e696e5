"""Compare existing runs: one table, and a report with Pareto fronts and curves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.analysis.comparison import columns, notes, rows
from raysim.analysis.comparison.figures import figures_of
from raysim.analysis.comparison.rows import Row
from raysim.analysis.comparison.sources import Sources
from raysim.analysis.comparison.table import leading_of, table_of
from raysim.analysis.tables import text
from raysim.analysis.tables.columns import Column
from raysim.analysis.tables.means import default_target
from raysim.core.errors import SettingError
from raysim.core.storage import atomic
from raysim.core.storage.local import storage_path
from raysim.tracking.run_folder import as_setting, make_folder

FILES = ("compare.md", "compare.csv", "compare.tex", "compare.json", "compare.html")


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Runs side by side.

    Attributes:
        rows: The rows.
        baseline: The row that others are compared with.
        targets: Values of the primary metric whose costs are shown.
        table: The figures of each row.
        limits: Notes on what limits the comparison.
    """

    rows: Sequence[Row]
    baseline: Row
    targets: Sequence[float]
    table: Sequence[dict[str, Any]]
    limits: Sequence[str]

    @property
    def title(self) -> str:
        """Data sets and models, in one line."""
        data = sorted({run.settings.data.name for row in self.rows for run in row.runs})
        models = sorted({run.settings.model.name for row in self.rows for run in row.runs})
        return f"Comparison on {', '.join(data)} with {', '.join(models)}"

    @property
    def columns(self) -> list[Column]:
        """The columns of the table, as text."""
        return columns.columns_of(self.table)

    @property
    def notes(self) -> list[str]:
        """The notes below the table."""
        return [notes.how_to_read(self.baseline.label, self.columns, self.baseline.primary), *self.limits]

    def content(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "title": self.title,
            "baseline": self.baseline.label,
            "targets": list(self.targets),
            "rows": list(self.table),
            "notes": list(self.limits),
        }


def compare(
    names: Sequence[str], tracking_uri: str | None = None, baseline: str | None = None, targets: Sequence[float] = ()
) -> Compared:
    """Compare runs.

    Args:
        names: Each the folder or id of a run, the folder or parent run of a comparison or a sweep, or an experiment.
        tracking_uri: The MLflow store; None: MLFLOW_TRACKING_URI if set, else the default.
        baseline: The label of the row that others are compared with; None: fedavg if there is such a row, else the
            first.
        targets: Values of the primary metric whose costs are shown; empty: those of the runs' `evaluation.targets`,
            else 95 % of what the baseline reached.

    Raises:
        SettingError: If a name stands for nothing, there is no such row, no run has been scored, or runs are scored
            by different metrics.
    """
    sources = Sources(tracking_uri)
    records = sources.find(names)
    grouped, repeated = rows.rows_of(records)
    against = rows.baseline_of(grouped, baseline)
    _check_metrics(grouped, against, targets)
    _check_scored(grouped, against)
    wanted = sorted(set(targets)) or targets_of(grouped, against)
    table = table_of(grouped, against, wanted)
    limits = [*sources.notes, *repeated, *notes.limits_of(grouped, against)]
    if not wanted:
        limits.append(f"No target: 95 % of what {against.label} reached is about chance; --target gives one")
    return Compared(grouped, against, wanted, table, limits)


def _check_metrics(grouped: Sequence[Row], baseline: Row, targets: Sequence[float]) -> None:
    """Refuse rows that are scored by another metric than the baseline, and targets that are no values of it."""
    metric = baseline.primary
    for row in grouped:
        if row.primary != metric:
            raise SettingError(
                f"RUN={row.runs[0].name!r} is scored by {row.primary.name!r}, RUN={baseline.runs[0].name!r} by "
                f"{metric.name!r}; allowed: runs with the same primary metric and direction"
            )
    for target in targets:
        if not metric.allows(target):
            raise SettingError(f"--target={target:g} is not {metric.allowed}")


def _check_scored(grouped: Sequence[Row], baseline: Row) -> None:
    """Refuse a baseline without any score, and rows of which none has one besides the baseline."""
    name = baseline.primary.name
    unscored = [row for row in grouped if not any(name in figures_of(run.rounds, run.primary) for run in row.runs)]
    if not unscored or (baseline not in unscored and len(unscored) < len(grouped) - 1):
        return
    for run in unscored[0].runs:
        if not run.rounds and not run.state:
            raise SettingError(f"RUN={run.name!r} cannot be compared: rounds.parquet is missing")
    named = ", ".join(run.name for run in unscored[0].runs[:3])
    raise SettingError(f"there is no metric to compare: no round has been scored in {named}")


def targets_of(grouped: Sequence[Row], baseline: Row) -> list[float]:
    """Return the `evaluation.targets` of the runs, else one that the baseline has almost reached, above chance."""
    given = {target for row in grouped for run in row.runs for target in run.settings.evaluation.targets}
    metric = baseline.primary
    leads = leading_of([figures_of(run.rounds, metric) for row in grouped for run in row.counted], metric)
    reached = [found[leads] for run in baseline.counted if leads in (found := figures_of(run.rounds, metric))]
    default = default_target(reached, baseline.runs[0].num_classes, metric)
    return sorted(given) or ([] if default is None else [default])


def write(compared: Compared, folder: Path) -> None:
    """Write the table as Markdown, CSV, LaTeX and JSON, and the report.

    Raises:
        SettingError: If the folder cannot be made or written.
    """
    from raysim.analysis.comparison import page  # Plotly takes a while to import

    make_folder(folder)
    title, shown, below = compared.title, compared.columns, compared.notes
    texts = (
        text.to_markdown(shown, title, below),
        text.to_csv(columns.csv_lines(compared.table)),
        text.to_latex(shown, title, below, "tab:comparison"),
        json.dumps(compared.content(), indent=2),
        page.render(title, compared.rows, compared.table, shown, below, compared.targets),
    )
    with as_setting(storage_path(folder), "cannot be written"):
        for name, content in zip(FILES, texts, strict=True):
            atomic.write_text(folder / name, content)
