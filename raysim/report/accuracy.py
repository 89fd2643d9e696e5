"""How accuracy grew: over rounds, and over what had been spent by then."""

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from raysim.report import style
from raysim.report.page import Panel, Section
from raysim.report.source import Recorded

CURVES = (("accuracy/global", "global model, test set"), ("accuracy/submodel_mean", "submodels, clients' own rows"))
"""Measured in some rounds: columns of the records, with what they are."""


def section(recorded: Recorded, baseline: Recorded | None = None) -> Section:
    """Return a figure for each way of counting what accuracy costs, with another run's global model beside."""
    rounds, axes = recorded.rounds, costs_of(recorded)
    beside = {} if baseline is None else costs_of(baseline)
    figures = []
    for name, (cost, label) in axes.items():
        figure = _curves(recorded, cost, label)
        if baseline is not None and name in beside and "accuracy/global" in baseline.rounds:
            _add(figure, baseline, beside[name][0], len(CURVES), "accuracy/global", f"{_method(baseline)}, test set")
        figures.append(Panel(figure, f"Over {name}"))
    text = "Of the global model on the test set, and the mean of the clients' submodels on their own held-out rows."
    if not rounds["energy_j"][-1]:
        text += " Joules were not counted: the devices have no figures of power."
    return Section("accuracy", "Accuracy", text, figures)


def costs_of(recorded: Recorded) -> dict[str, tuple[NDArray[np.float64], str]]:
    """Return what had been spent after each round, with the axis' label, by name."""
    rounds = recorded.rounds
    axes = {
        "rounds": (rounds["round"], "round"),
        "seconds": (rounds["simulated_s"], "simulated seconds"),
        "megabytes": (rounds["bytes"] / 1e6, "megabytes moved"),
    }
    return axes | ({"joules": (rounds["energy_j"], "joules of the devices")} if rounds["energy_j"][-1] else {})


def _curves(recorded: Recorded, cost: NDArray[np.float64], label: str) -> go.Figure:
    figure = go.Figure()
    for place, (name, what) in enumerate(CURVES):
        if name in recorded.rounds:
            _add(figure, recorded, cost, place, name, what)
    for target in recorded.settings.get("evaluation", {}).get("targets") or ():
        style.mark_target(figure, 100 * target, target)
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title_text=label)
    if label == "round":
        style.over_rounds(figure, len(cost))
    figure.update_yaxes(title_text="accuracy (%)")
    return figure


def _add(
    figure: go.Figure, recorded: Recorded, cost: NDArray[np.float64], place: int, name: str, what: str
) -> None:  # fmt: skip
    accuracy = recorded.rounds[name].astype(np.float64)
    measured = ~np.isnan(accuracy)
    figure.add_scatter(
        x=cost[measured], y=100 * accuracy[measured], name=what, line=style.line(place),
        mode="lines+markers" if measured.sum() <= 40 else "lines", marker={"symbol": style.SYMBOLS[place]},
        hovertemplate="%{y:.2f} %",
    )  # fmt: skip


def _method(recorded: Recorded) -> str:
    return str(recorded.settings["method"]["name"])
