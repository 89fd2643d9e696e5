"""Draw the score of each row of a study, one panel per cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raysim.analysis.study.page import CellTable
from raysim.analysis.study.table import Row
from raysim.analysis.tables.means import t_interval
from raysim.config.metric import metric_in
from raysim.core.storage import atomic
from raysim.report.style import WONG

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 2
"""Panels in a line."""


def draw(path: Path, cells: Sequence[CellTable]) -> Path:
    """Draw a point for each run, and the mean with its 95 % t-interval; return the path of the SVG.

    Args:
        path: The path of the figure.
        cells: The cells with results, at least one.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    lines = -(-len(cells) // ACROSS)
    tallest = max(len(cell.rows) for cell in cells)
    figure = Figure(figsize=(9, lines * (0.28 * tallest + 1.1)), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(lines, min(ACROSS, len(cells)), squeeze=False).ravel()
    for axes, cell in zip(panels, cells, strict=False):
        _panel(axes, cell)
    for axes in panels[len(cells) :]:
        axes.set_visible(False)
    with rc_context({"svg.hashsalt": "raysim"}):  # the same results give the same file
        return atomic.write_atomically(
            path, lambda partial: figure.savefig(partial, format="svg", metadata={"Date": None})
        )


def _panel(axes: "Axes", cell: CellTable) -> None:
    labels = [row["label"] for row in cell.rows]
    for height, row in enumerate(cell.rows):
        _row(axes, height, row, cell)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    metric = metric_in(cell.rows[0])
    axes.set_xlabel(f"test {metric.title} in per cent" if metric.is_share else f"test {metric.title}")
    axes.set_title(cell.name, loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _row(axes: "Axes", height: int, row: Row, cell: CellTable) -> None:
    leads = row["leading"]
    scale = metric_in(row).scale
    values = [scale * run[leads] for run in cell.figures if run["label"] == row["label"] and run[leads] is not None]
    if not values:
        return
    mean, (low, high) = sum(values) / len(values), t_interval(values)
    if low is not None and high is not None:
        axes.plot([low, high], [height, height], color=WONG[0], linewidth=1.6, solid_capstyle="butt")
    axes.plot(values, [height] * len(values), "o", color=WONG[1], markersize=3, alpha=0.6, linestyle="none")
    axes.plot([mean], [height], "D", color=WONG[0], markersize=5)
