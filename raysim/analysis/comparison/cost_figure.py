"""Draw the primary metric against its costs as one PNG, and write what a target cost as a Markdown table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim.analysis.comparison.curves import COSTS, Curve
from raysim.analysis.tables.columns import Column
from raysim.analysis.tables.text import table_of
from raysim.config.metric import ACCURACY, PrimaryMetric
from raysim.core.storage import atomic
from raysim.report.style import WONG

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ("-", "--", "-.", ":")


def draw(path: Path, curves: Mapping[str, Mapping[str, Curve]], title: str, target: float) -> Path:
    """Draw one row of panels per clock mode, one column per cost, one line per method; return the path.

    Args:
        path: The path of the PNG.
        curves: The curves by mode, then by method.
        title: The title above the figure.
        target: A value of the metric that a thin line marks.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = next(curve.metric for by_method in curves.values() for curve in by_method.values())
    figure = Figure(figsize=(11, 2.5 * len(curves) + 1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), len(COSTS), sharex="col", sharey=True, squeeze=False)
    for row, (mode, by_method) in zip(panels, curves.items(), strict=True):
        for axes, name in zip(row, COSTS, strict=True):
            _panel(axes, by_method, name, target)
        row[0].set_ylabel(f"{mode}\n\ntest {metric.title}")
    for axes, label in zip(panels[-1], COSTS.values(), strict=True):
        axes.set_xlabel(label)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.suptitle(title)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return atomic.write_atomically(path, lambda partial: figure.savefig(partial, format="png"))


def _panel(axes: "Axes", by_method: Mapping[str, Curve], cost: str, target: float) -> None:
    axes.axhline(target, color="0.6", linewidth=0.8)
    for index, (method, curve) in enumerate(by_method.items()):
        color, dashes = WONG[index % len(WONG)], DASHES[index % len(DASHES)]
        axes.plot(curve.costs[cost], curve.values, label=method, linewidth=1.8, color=color, linestyle=dashes)
    if all((curve.costs[cost] > 0).all() for curve in by_method.values()):
        axes.set_xscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def target_rows(curves: Mapping[str, Mapping[str, Curve]], target: float) -> list[dict[str, Any]]:
    """Return what the target cost each method in each mode, one row each, with the last score."""
    return [
        {"mode": mode, "method": method, "last": float(curve.values[-1]), **curve.cost_of(target)}
        for mode, by_method in curves.items()
        for method, curve in by_method.items()
    ]


def markdown(rows: Sequence[Mapping[str, Any]], target: float, metric: PrimaryMetric = ACCURACY) -> str:
    """Return the rows of `target_rows` as a Markdown table."""
    costs = [
        Column("", f"{unit} to {target:g}", ["never" if row[name] is None else f"{row[name]:,.0f}" for row in rows])
        for name, unit in zip(COSTS, ("seconds", "MB", "J"), strict=True)
    ]
    columns = [
        Column("", "clock mode", [row["mode"] for row in rows], is_text=True),
        Column("", "method", [row["method"] for row in rows], is_text=True),
        *costs,
        Column("", f"{metric.title} at the end", [metric.in_percent(row["last"], 1) for row in rows]),
    ]
    return table_of(columns) + "\n"
