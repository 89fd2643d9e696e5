"""A method's predictions held against what happened, where that was asked for."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from raysim.core.formatting import rounded
from raysim.report import style
from raysim.report.fragments import table
from raysim.report.page import Panel, Section
from raysim.report.source import Recorded

PREFIX = "diagnostics/"
FIGURES = (
    (
        "Pruned entries averaged as zeros: change of the loss", "change of the loss", "linear",
        ("measured_zero_fill", "predicted_zero_fill", "predicted_zero_fill_full_hessian", "estimated_zero_fill"),
    ),
    (
        "Submodels in place of the model: change of the loss", "change of the loss", "linear",
        ("measured_submodels", "predicted_submodels", "estimated_submodels"),
    ),
    (
        "Theorem 1: the gradient and what bounds its mean", "squared norm", "log",
        ("gradient_squared_norm", "bound_printed", "bound_lemma1"),
    ),
    (
        "Terms of the bound", "value", "log",
        ("gradient_variance", "gradient_dissimilarity", "smoothness", "zero_fill_error"),
    ),
    (
        "Channel scores against the loss of leaving channels out", "rank correlation", "linear",
        ("score_rank_correlation", "score_rank_correlation_in_groups"),
    ),
    ("Masks: alike between clients, changed by the next round", "Jaccard index", "linear",
     ("mask_overlap", "mask_churn")),
)  # fmt: skip
"""Title, axis, its scale, and what is drawn."""
MEANING = (
    "At the weights a round started from, on held-out rows: F is the loss, zero-filling counts entries that a client "
    "pruned as zeros. Predictions are by gradient and diagonal of the Hessian (eq 14 of CA-HFP), with the full "
    "Hessian, and by the method's own estimates. Every figure is a metric `diagnostics/...` of the run."
)


def section(recorded: Recorded) -> Section:
    """Return the figures of what was diagnosed, and the last values as a table."""
    known = [name.removeprefix(PREFIX) for name in recorded.rounds if name.startswith(PREFIX)]
    if not known:
        text = "Not asked for in this run: `diagnostics.every: N` diagnoses every N-th round."
        return Section("diagnostics", "Diagnostics", text)
    figures = []
    for title, axis, scale, names in FIGURES:
        drawn = [name for name in names if name in known]
        if drawn:
            figures.append(Panel(_curves(recorded, drawn, axis, scale), title))
    rows = [(name, *_spread(recorded, name)) for name in known]
    html = table(("metric", "first", "last", "least", "most"), rows)
    return Section("diagnostics", "Diagnostics", MEANING, figures, html)


def _spread(recorded: Recorded, name: str) -> tuple[str, ...]:
    values = recorded.rounds[PREFIX + name].astype(np.float64)
    values = values[~np.isnan(values)]
    return tuple(rounded(float(value)) for value in (values[0], values[-1], values.min(), values.max()))


def _curves(recorded: Recorded, names: Sequence[str], axis: str, scale: str) -> go.Figure:
    figure = go.Figure()
    for place, name in enumerate(names):
        values = recorded.rounds[PREFIX + name].astype(np.float64)
        known = ~np.isnan(values)
        figure.add_scatter(
            x=recorded.rounds["round"][known], y=values[known], name=name.replace("_", " "), line=style.line(place),
            mode="lines+markers", marker={"symbol": style.SYMBOLS[place]}, hovertemplate="%{y:.4g}",
        )  # fmt: skip
    figure.update_layout(hovermode="x unified")
    style.over_rounds(figure, len(recorded.rounds["round"]))
    figure.update_yaxes(title_text=axis, type=scale, exponentformat="power")
    return figure
