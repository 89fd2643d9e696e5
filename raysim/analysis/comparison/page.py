"""Write the report of a comparison as one page: the table, Pareto fronts, and curves of the scores with bands."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from raysim.analysis.comparison.curves import COSTS, Curve, curve_of, mean_curve
from raysim.analysis.comparison.rows import Row
from raysim.analysis.comparison.table import compared_costs, has_both
from raysim.analysis.tables.columns import UNITS, Column, parts_of
from raysim.analysis.tables.text import rows_of
from raysim.config.metric import ACCURACY, PrimaryMetric, metric_in
from raysim.report import fragments, page, style
from raysim.report.page import Panel, Section

AXES = {"rounds": "rounds", **COSTS}
BAND = 0.15
"""The opacity of a band."""


def render(
    title: str,
    rows: Sequence[Row],
    table: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    notes: Sequence[str],
    targets: Sequence[float],
) -> str:
    """Return the page.

    Args:
        title: The title of the page.
        rows: The rows of the comparison.
        table: Their figures, as of `table.table_of`.
        columns: The columns of the table, as text.
        notes: The notes below the table.
        targets: Values of the primary metric that thin lines mark in the curves.
    """
    metric = rows[0].primary
    good = "accurate" if metric.name == ACCURACY.name else "good"
    sections = [
        Section("table", "Table", html=_table(columns, notes)),
        Section(
            "fronts", f"What {metric.title} costs", _FRONTS.format(metric=metric.title, good=good), _fronts(table)
        ),
        Section(
            "curves", f"{_title(metric)} by cost", _CURVES.format(metric=metric.title), _curves(rows, table, targets)
        ),
    ]
    shown = [section for section in sections if section.html or section.figures]
    num_runs = sum(len(row.runs) for row in rows)
    return page.render(title, shown, f"{len(rows)} rows from {num_runs} runs")


_FRONTS = (
    "Each row by the total cost of its runs and the {metric} that leads the table; bars are sample "
    "standard deviations over seeds. The line joins the rows on the Pareto front: no other row is as {good} for "
    "less. Rows whose runs did not finish are hollow and not part of the front."
)
_CURVES = (
    "Mean test {metric} of each row's runs; bands are one sample standard deviation over seeds to both sides. Click "
    "a name in the legend to hide its line, double-click it to hide all others."
)


def _table(columns: Sequence[Column], notes: Sequence[str]) -> Markup:
    made = Markup("")
    for part in parts_of(columns):
        is_text = all(column.is_text for column in part)
        made += fragments.table([column.heading for column in part], rows_of(part), len(part) if is_text else 1)
    for note in notes:
        made += fragments.paragraph(note)
    return made


def _fronts(table: Sequence[Mapping[str, Any]]) -> list[Panel]:
    title = _title(metric_in(table[0]))
    return [Panel(_front(table, name), f"{title} against {COSTS[name]}") for name in compared_costs(table)]


def _title(metric: PrimaryMetric) -> str:
    return f"{metric.title[0].upper()}{metric.title[1:]}"


def _axis(figure: go.Figure, metric: PrimaryMetric) -> None:
    figure.update_yaxes(title=f"test {metric.title}", tickformat=".0%" if metric.is_share else ".4~g")


def _front(table: Sequence[Mapping[str, Any]], cost: str) -> go.Figure:
    figure = go.Figure()
    known = [row for row in table if has_both(row, cost)]
    on_front = sorted((row for row in known if cost in row["fronts"]), key=lambda row: float(row[cost]["mean"]))
    figure.add_scatter(
        x=[row[cost]["mean"] for row in on_front],
        y=[row[row["leading"]]["mean"] for row in on_front],
        mode="lines",
        line={"color": style.MUTED, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
        showlegend=False,
        name="front",
    )
    for index, row in enumerate(table):
        if row in known:
            figure.add_trace(_point(row, cost, index))
    figure.update_xaxes(title=COSTS[cost])
    spent = [row[cost]["mean"] for row in known]
    if max(spent) > 5 * min(spent) > 0:
        figure.update_xaxes(type="log", dtick="D2" if max(spent) < 100 * min(spent) else 1)
    _axis(figure, metric_in(table[0]))
    figure.update_layout(height=_height(len(table)), showlegend=len(known) > 1)
    return figure


def _point(row: Mapping[str, Any], cost: str, index: int) -> go.Scatter:
    spent, reached = row[cost], row[row["leading"]]
    form = ".1%" if metric_in(row).is_share else ".5g"
    is_on_front, color = cost in row["fronts"], style.color(index)
    symbol = style.SYMBOLS[index % len(style.SYMBOLS)] + ("" if row["is_whole"] else "-open")
    line = {"width": 1.5, "color": style.INK if is_on_front else color}
    marker = {"symbol": symbol, "color": color, "size": 11 if is_on_front else 8, "line": line}
    mark = ", on the front" if is_on_front else ""
    return go.Scatter(
        x=[spent["mean"]],
        y=[reached["mean"]],
        mode="markers",
        marker=marker,
        name=row["label"],
        error_x={"array": [spent["std"] or 0], "thickness": 1, "width": 3},
        error_y={"array": [reached["std"] or 0], "thickness": 1, "width": 3},
        hovertemplate=f"%{{x:,.4g}} {UNITS[cost]}, %{{y:{form}}}{mark}",
    )


def _curves(rows: Sequence[Row], table: Sequence[Mapping[str, Any]], targets: Sequence[float]) -> list[Panel]:
    metric = rows[0].primary
    scored = [index for index, row in enumerate(table) if row[metric.name]["mean"] is not None]
    means = {index: mean_curve([curve_of(run.rounds, metric) for run in rows[index].counted]) for index in scored}
    axes = [name for name in AXES if any(means[index][0].costs[name].any() for index in scored)]
    panels = []
    for axis in axes:
        shown = [index for index in scored if means[index][0].costs[axis].any()]
        lines = {index: (rows[index].label, *means[index]) for index in shown}
        panels.append(Panel(_curve(axis, lines, targets), f"{_title(metric)} against {AXES[axis]}"))
    return panels


def _curve(
    axis: str, lines: Mapping[int, tuple[str, Curve, np.ndarray[Any, Any]]], targets: Sequence[float]
) -> go.Figure:
    figure, metric = go.Figure(), next(iter(lines.values()))[1].metric
    for index, (label, curve, deviation) in lines.items():
        along, group = curve.costs[axis], f"row {index}"
        if deviation.any():
            figure.add_scatter(
                x=np.concatenate([along, along[::-1]]),
                y=np.concatenate([curve.values + deviation, (curve.values - deviation)[::-1]]),
                fill="toself",
                fillcolor=style.faded(style.color(index), BAND),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=group,
                name=f"{label}, deviation",
            )
        figure.add_scatter(
            x=along,
            y=curve.values,
            mode="lines" if len(along) > 1 else "markers",
            line=style.line(index),
            name=label,
            legendgroup=group,
            hovertemplate="%{x:,.4g}, %{y:.1%}" if curve.metric.is_share else "%{x:,.4g}, %{y:.5g}",
        )
    for target in targets:
        style.mark_target(figure, target, metric.target_text(target))
    figure.update_xaxes(title=AXES[axis])
    spent = [curve.costs[axis][-1] for _, curve, _ in lines.values()]
    if axis != "rounds" and max(spent) > 5 * min(spent):
        figure.update_xaxes(type="log", dtick="D2" if max(spent) < 100 * min(spent) else 1)
    _axis(figure, metric)
    figure.update_layout(height=_height(len(lines)), showlegend=len(lines) > 1)
    return figure


def _height(num_lines: int) -> int:
    """Return the height of a figure in pixels, with room for its legend."""
    return 330 + 9 * num_lines
