"""The report of a comparison: the table, Pareto fronts, and accuracy curves with bands over seeds, as one page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from raysim.analysis.comparison import reached, views
from raysim.analysis.comparison.curves import COSTS, Curve
from raysim.analysis.comparison.rows import Row
from raysim.analysis.comparison.views import Column
from raysim.report import fragments, page, style
from raysim.report.page import Panel, Section

AXES = {"rounds": "rounds", **COSTS}
BAND = 0.15
"""Opacity of a band."""


def render(
    title: str, rows: Sequence[Row], table: Sequence[Mapping[str, Any]], columns: Sequence[Column],
    notes: Sequence[str], targets: Sequence[float],
) -> str:  # fmt: skip
    """Return the page.

    Args:
        title: Above it.
        rows: What is compared.
        table: Their figures, as of `reached.table_of`.
        columns: The table as text.
        notes: Below the table.
        targets: Accuracies that thin lines mark in the curves.
    """
    sections = [
        Section("table", "Table", html=_table(columns, notes)),
        Section("fronts", "What accuracy costs", _FRONTS, _fronts(table)),
        Section("curves", "Accuracy on the way", _CURVES, _curves(rows, table, targets)),
    ]
    num_runs = sum(len(row.runs) for row in rows)
    return page.render(title, [section for section in sections if section.html or section.figures],
                       f"{len(rows)} rows from {num_runs} runs")  # fmt: skip


_FRONTS = (
    "Each row by what its runs spent in all and the mean accuracy of their last evaluations; bars are sample "
    "standard deviations over seeds. The line joins the rows on the Pareto front: no other one is as accurate for "
    "less. Rows whose runs fell short are hollow and left aside."
)
_CURVES = (
    "Mean test accuracy of each row's runs; bands are one sample standard deviation over seeds to both sides. A name "
    "in the legend, clicked, hides its line, clicked twice, all others."
)


def _table(columns: Sequence[Column], notes: Sequence[str]) -> Markup:
    made = Markup("")
    for part in views.parts_of(columns):
        cells = [list(line) for line in zip(*(column.cells for column in part), strict=True)]
        is_text = all(column.is_text for column in part)
        made += fragments.table([column.heading for column in part], cells, len(part) if is_text else 1)
    for note in notes:
        made += fragments.paragraph(note)
    return made


def _fronts(table: Sequence[Mapping[str, Any]]) -> list[Panel]:
    return [Panel(_front(table, name), f"Accuracy against {COSTS[name]}") for name in reached.weighed(table)]


def _front(table: Sequence[Mapping[str, Any]], cost: str) -> go.Figure:
    figure = go.Figure()
    known = [row for row in table if reached.has_both(row, cost)]
    on_it = sorted((row for row in known if cost in row["fronts"]), key=lambda row: float(row[cost]["mean"]))
    figure.add_scatter(
        x=[row[cost]["mean"] for row in on_it], y=[row["accuracy_last10"]["mean"] for row in on_it], mode="lines",
        line={"color": style.MUTED, "width": 1.5, "shape": "hv"}, hoverinfo="skip", showlegend=False, name="front",
    )  # fmt: skip
    for place, row in enumerate(table):
        if row in known:
            figure.add_trace(_point(row, cost, place))
    figure.update_xaxes(title=COSTS[cost])
    spent = [row[cost]["mean"] for row in known]
    if max(spent) > 5 * min(spent) > 0:
        figure.update_xaxes(type="log", dtick="D2" if max(spent) < 100 * min(spent) else 1)
    figure.update_yaxes(title="test accuracy", tickformat=".0%")
    figure.update_layout(height=_height(len(table)), showlegend=len(known) > 1)
    return figure


def _point(row: Mapping[str, Any], cost: str, place: int) -> go.Scatter:
    spent, accuracy = row[cost], row["accuracy_last10"]
    is_best, color = cost in row["fronts"], style.color(place)
    symbol = style.SYMBOLS[place % len(style.SYMBOLS)] + ("" if row["is_whole"] else "-open")
    line = {"width": 1.5, "color": style.INK if is_best else color}
    marker = {"symbol": symbol, "color": color, "size": 11 if is_best else 8, "line": line}
    mark = ", on the front" if is_best else ""
    return go.Scatter(
        x=[spent["mean"]], y=[accuracy["mean"]], mode="markers", marker=marker, name=row["label"],
        error_x={"array": [spent["std"] or 0], "thickness": 1, "width": 3},
        error_y={"array": [accuracy["std"] or 0], "thickness": 1, "width": 3},
        hovertemplate=f"%{{x:,.4g}} {views.UNITS[cost]}, %{{y:.1%}}{mark}",
    )  # fmt: skip


def _curves(rows: Sequence[Row], table: Sequence[Mapping[str, Any]], targets: Sequence[float]) -> list[Panel]:
    scored = [place for place, row in enumerate(table) if row["accuracy"]["mean"] is not None]
    means = {place: reached.mean_curve(rows[place]) for place in scored}
    axes = [name for name in AXES if any(means[place][0].costs[name].any() for place in scored)]
    return [
        Panel(_curve(axis, {place: (rows[place].label, *means[place])
                            for place in scored if means[place][0].costs[axis].any()}, targets),
              f"Accuracy against {AXES[axis]}")
        for axis in axes
    ]  # fmt: skip


def _curve(
    axis: str, lines: Mapping[int, tuple[str, Curve, np.ndarray[Any, Any]]], targets: Sequence[float]
) -> go.Figure:  # fmt: skip
    figure = go.Figure()
    for place, (label, curve, deviation) in lines.items():
        along, group = curve.costs[axis], f"row {place}"
        if deviation.any():
            figure.add_scatter(
                x=np.concatenate([along, along[::-1]]),
                y=np.concatenate([curve.accuracy + deviation, (curve.accuracy - deviation)[::-1]]),
                fill="toself", fillcolor=style.faded(style.color(place), BAND), line={"width": 0}, mode="lines",
                hoverinfo="skip", showlegend=False, legendgroup=group, name=f"{label}, deviation",
            )  # fmt: skip
        figure.add_scatter(
            x=along, y=curve.accuracy, mode="lines" if len(along) > 1 else "markers", line=style.line(place),
            name=label, legendgroup=group, hovertemplate="%{x:,.4g}, %{y:.1%}",
        )  # fmt: skip
    for target in targets:
        style.mark_target(figure, target, target)
    figure.update_xaxes(title=AXES[axis])
    spent = [curve.costs[axis][-1] for _, curve, _ in lines.values()]
    if axis != "rounds" and max(spent) > 5 * min(spent):
        figure.update_xaxes(type="log", dtick="D2" if max(spent) < 100 * min(spent) else 1)
    figure.update_yaxes(title="test accuracy", tickformat=".0%")
    figure.update_layout(height=_height(len(lines)), showlegend=len(lines) > 1)
    return figure


def _height(num_lines: int) -> int:
    """Return a figure's height in pixels, so that its legend leaves room for it."""
    return 330 + 9 * num_lines
