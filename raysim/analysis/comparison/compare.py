"""Compares runs that are there already: one table, and a report with fronts and curves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.analysis.comparison import reached, rows, views
from raysim.analysis.comparison.rows import Row
from raysim.analysis.comparison.sources import Sources
from raysim.analysis.comparison.views import Column
from raysim.core.errors import SettingError
from raysim.core.storage import atomic
from raysim.core.storage.local import storage_path
from raysim.tracking.run_folder import as_setting, make_folder

FILES = ("compare.md", "compare.csv", "compare.tex", "compare.json", "compare.html")


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Runs side by side.

    Attributes:
        rows: What is compared.
        baseline: The row that others are held against.
        targets: Accuracies whose costs are told.
        table: Figures of each row.
        notes: What stands in the way of comparing.
    """

    rows: Sequence[Row]
    baseline: Row
    targets: Sequence[float]
    table: Sequence[dict[str, Any]]
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """What is compared, in one line."""
        data = sorted({run.settings.data.name for row in self.rows for run in row.runs})
        models = sorted({run.settings.model.name for row in self.rows for run in row.runs})
        return f"Comparison on {', '.join(data)} with {', '.join(models)}"

    @property
    def columns(self) -> list[Column]:
        """The table as text."""
        return views.columns_of(self.table)

    @property
    def notes_below(self) -> list[str]:
        """What stands below the table."""
        return views.notes_below(self.baseline.label, self.notes, self.columns)

    def content(self) -> dict[str, Any]:
        """Return all there is to say, ready for JSON."""
        return {
            "title": self.title, "baseline": self.baseline.label, "targets": list(self.targets),
            "rows": list(self.table), "notes": list(self.notes),
        }  # fmt: skip


def compare(
    names: Sequence[str], tracking_uri: str | None = None, baseline: str | None = None, targets: Sequence[float] = ()
) -> Compared:
    """Compare runs.

    Args:
        names: Each a run's folder or id, the folder or parent run of a comparison or a sweep, or an experiment.
        tracking_uri: The MLflow store; none = MLFLOW_TRACKING_URI if set, else the default one.
        baseline: Label of the row that others are held against; none = fedavg if it is there, else the first.
        targets: Accuracies in (0, 1] whose costs are told; none = those of the runs' `evaluation.targets`, else 95 %
            of what the baseline reached.

    Raises:
        SettingError: If a name stands for nothing, there is no such row, or no run has been scored.
    """
    for target in targets:
        if not 0 < target <= 1:
            raise SettingError(f"--target={target:g} is not in (0, 1]")
    sources = Sources(tracking_uri)
    records = sources.find(names)
    grouped, repeated = rows.rows_of(records)
    against = rows.baseline_of(grouped, baseline)
    _check_scored(grouped, against)
    wanted = sorted(set(targets)) or _targets_of(grouped, against)
    table = reached.table_of(grouped, against, wanted)
    return Compared(grouped, against, wanted, table, [*sources.notes, *repeated, *rows.notes_of(grouped, against)])


def _check_scored(grouped: Sequence[Row], baseline: Row) -> None:
    """Refuse rows that have no accuracy in common: with the baseline, or, where it stands alone, at all."""
    unscored = [row for row in grouped if not any("accuracy" in reached.figures_of(run.rounds) for run in row.runs)]
    if not unscored or (baseline not in unscored and len(unscored) < len(grouped) - 1):
        return
    for run in unscored[0].runs:
        if not run.rounds and not run.state:
            raise SettingError(f"RUN={run.name!r} cannot be compared: rounds.parquet is missing")
    named = ", ".join(run.name for run in unscored[0].runs[:3])
    raise SettingError(f"there is no metric to compare: no round has been scored in {named}")


def _targets_of(grouped: Sequence[Row], baseline: Row) -> list[float]:
    asked = {target for row in grouped for run in row.runs for target in run.settings.evaluation.targets}
    default = reached.default_target([reached.figures_of(run.rounds) for run in baseline.counted])
    return sorted(asked) or ([] if default is None else [default])


def write(compared: Compared, folder: Path) -> None:
    """Write the table as Markdown, CSV, LaTeX and JSON, and the report.

    Raises:
        SettingError: If the folder cannot be made or written.
    """
    from raysim.analysis.comparison import page  # Plotly takes a while to import

    make_folder(folder)
    columns, notes, title = compared.columns, compared.notes_below, compared.title
    texts = (
        views.to_markdown(columns, title, notes), views.to_csv(compared.table), views.to_latex(columns, title, notes),
        json.dumps(compared.content(), indent=2),
        page.render(title, compared.rows, compared.table, columns, notes, compared.targets),
    )  # fmt: skip
    with as_setting(storage_path(folder), "cannot be written"):
        for name, text in zip(FILES, texts, strict=True):
            atomic.write_text(folder / name, text)
