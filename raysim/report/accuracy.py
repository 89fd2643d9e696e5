"""Draw how accuracy grew: over rounds, simulated time, traffic and energy."""

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from raysim.report import style
from raysim.report.page import Panel, Section
from raysim.tracking.run_reader import RunReader

CURVES = (
    ("accuracy/global", "global model, test set"),
    ("accuracy/submodel_mean", "submodels, clients' own rows"),
    ("accuracy/validation", "global model, validation rows"),
)
"""Columns of the table of rounds, with the name of their curve; rounds without an evaluation have NaN."""


def section(run: RunReader, baseline: RunReader | None = None) -> Section:
    """Return one figure per cost, each with the global model of the baseline for comparison."""
    costs = costs_of(run)
    baseline_costs = {} if baseline is None else costs_of(baseline)
    figures = []
    for name, (cost, label) in costs.items():
        figure = _curves(run, cost, label)
        if baseline is not None and name in baseline_costs and "accuracy/global" in baseline.rounds:
            title = f"{baseline.settings.method.name}, test set"
            _add(figure, baseline, baseline_costs[name][0], len(CURVES), "accuracy/global", title)
        figures.append(Panel(figure, f"Over {name}"))
    text = (
        "Of the global model on the test set, and the mean of the clients' submodels on their own held-out rows, "
        "each as trained by its client, before aggregation."
    )
    if stop := run.settings.stop.accuracy:
        rows = "validation" if run.settings.data.validation_share else "test"
        text += f" The run ends at {100 * stop:g} % on the {rows} rows (stop.accuracy)."
    if not run.rounds["energy_j"][-1]:
        text += " Energy was not counted: the devices have no power figures."
    return Section("accuracy", "Accuracy", text, figures)


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
    figure = go.Figure()
    for index, (column, title) in enumerate(CURVES):
        if column in run.rounds:
            _add(figure, run, cost, index, column, title)
    for target in run.settings.evaluation.targets:
        style.mark_target(figure, 100 * target, target)
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title_text=label)
    if label == "round":
        style.over_rounds(figure, len(cost))
    figure.update_yaxes(title_text="accuracy (%)")
    return figure


def _add(figure: go.Figure, run: RunReader, cost: NDArray[np.float64], index: int, column: str, title: str) -> None:
    accuracy = run.rounds[column].astype(np.float64)
    measured = ~np.isnan(accuracy)
    figure.add_scatter(
        x=cost[measured],
        y=100 * accuracy[measured],
        name=title,
        line=style.line(index),
        mode="lines+markers" if measured.sum() <= 40 else "lines",
        marker={"symbol": style.SYMBOLS[index]},
        hovertemplate="%{y:.2f} %",
    )
