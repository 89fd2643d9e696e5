"""Draw how the primary metric, such as the accuracy, developed: over rounds, simulated time, traffic and energy."""

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from raysim.report import style
from raysim.report.page import Panel, Section
from raysim.tracking.run_reader import RunReader

CURVES = (
    ("primary/global", "global model, test set"),
    ("primary/submodel_mean", "submodels, clients' own rows"),
    ("primary/validation", "global model, validation rows"),
)
"""Columns of the table of rounds, with the name of their curve; rounds without an evaluation have NaN.

`primary` stands for the name of the metric.
"""


def section(run: RunReader, baseline: RunReader | None = None) -> Section:
    """Return one figure per cost, each with the global model of the baseline for comparison."""
    costs, metric = costs_of(run), run.primary
    served = metric.recorded(CURVES[0][0])
    baseline_costs = {} if baseline is None else costs_of(baseline)
    figures = []
    for name, (cost, label) in costs.items():
        figure = _curves(run, cost, label)
        if baseline is not None and name in baseline_costs and served in baseline.rounds:
            title = f"{baseline.settings.method.name}, test set"
            _add(figure, baseline, baseline_costs[name][0], len(CURVES), served, title)
        figures.append(Panel(figure, f"Over {name}"))
    text = (
        "Of the global model on the test set, and the mean of the clients' submodels on their own held-out rows, "
        "each as trained by its client, before aggregation."
    )
    stop = run.settings.stop.value
    if stop is not None:
        rows = "validation" if run.settings.data.validation_share else "test"
        text += f" The run ends at {metric.target_text(stop)} on the {rows} rows ({metric.stop_setting})."
    if not run.rounds["energy_j"][-1]:
        text += " Energy was not counted: the devices have no power figures."
    return Section(metric.name, f"{metric.title[0].upper()}{metric.title[1:]}", text, figures)


def costs_of(run: RunReader) -> dict[str, tuple[NDArray[np.float64], str]]:
    """Return what had been spent after each round and the label of its axis, by name."""
    rounds = run.rounds
    costs = {
        "rounds": (rounds["round"], "round"),
        "seconds": (rounds["simulated_s"], "simulated seconds"),
        "megabytes": (rounds["bytes"] / 1e6, "megabytes moved"),
    }
    return costs | ({"joules": (rounds["energy_j"], "joules of the devices")} if rounds["energy_j"][-1] else {})


def _curves(run: RunReader, cost: NDArray[np.float64], label: str) -> go.Figure:
    figure, metric = go.Figure(), run.primary
    for index, (name, title) in enumerate(CURVES):
        column = metric.recorded(name)
        if column in run.rounds:
            _add(figure, run, cost, index, column, title)
    for target in run.settings.evaluation.targets:
        style.mark_target(figure, metric.scale * target, metric.target_text(target))
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title_text=label)
    if label == "round":
        style.over_rounds(figure, len(cost))
    figure.update_yaxes(title_text=metric.axis)
    return figure


def _add(figure: go.Figure, run: RunReader, cost: NDArray[np.float64], index: int, column: str, title: str) -> None:
    values, metric = run.rounds[column].astype(np.float64), run.primary
    measured = ~np.isnan(values)
    figure.add_scatter(
        x=cost[measured],
        y=metric.scale * values[measured],
        name=title,
        line=style.line(index),
        mode="lines+markers" if measured.sum() <= 40 else "lines",
        marker={"symbol": style.SYMBOLS[index]},
        hovertemplate="%{y:.2f} %" if metric.is_share else "%{y:.5g}",
    )
