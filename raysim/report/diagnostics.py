"""Compare the predictions of a method with what was measured, in runs with `diagnostics.every`."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from raysim.core.formatting import rounded
from raysim.report import style
from raysim.report.fragments import table
from raysim.report.page import Panel, Section
from raysim.tracking.run_reader import RunReader

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
"""Title, label of the axis, its scale, and the metrics that are drawn."""
MEANING = (
    "At the weights from which a round started, on held-out rows. F is the loss; zero-filling counts entries that a "
    "client pruned as zeros. The predictions use the gradient and the diagonal of the Hessian (eq 14 of CA-HFP), the "
    "full Hessian, and the method's own estimates. Every curve is a metric `diagnostics/...` of the run."
)


def section(run: RunReader) -> Section:
    """Return the figures, and a table with the range of every metric."""
    known = [name.removeprefix(PREFIX) for name in run.rounds if name.startswith(PREFIX)]
    if not known:
        text = "This run has no diagnostics: with `diagnostics.every: N` every N-th round has them."
        return Section("diagnostics", "Diagnostics", text)
    figures = []
    for title, axis, scale, names in FIGURES:
        drawn = [name for name in names if name in known]
        if drawn:
            figures.append(Panel(_curves(run, drawn, axis, scale), title))
    rows = [(name, *_spread(run, name)) for name in known]
    html = table(("metric", "first", "last", "lowest", "highest"), rows)
    return Section("diagnostics", "Diagnostics", MEANING, figures, html)


def _spread(run: RunReader, name: str) -> tuple[str, ...]:
    values = run.rounds[PREFIX + name].astype(np.float64)
    values = values[~np.isnan(values)]
    return tuple(rounded(float(value)) for value in (values[0], values[-1], values.min(), values.max()))


def _curves(run: RunReader, names: Sequence[str], axis: str, scale: str) -> go.Figure:
    figure = go.Figure()
    for index, name in enumerate(names):
        values = run.rounds[PREFIX + name].astype(np.float64)
        known = ~np.isnan(values)
        figure.add_scatter(
            x=run.rounds["round"][known],
            y=values[known],
            name=name.replace("_", " "),
            line=style.line(index),
            mode="lines+markers",
            marker={"symbol": style.SYMBOLS[index]},
            hovertemplate="%{y:.4g}",
        )
    figure.update_layout(hovermode="x unified")
    style.over_rounds(figure, len(run.rounds["round"]))
    figure.update_yaxes(title_text=axis, type=scale, exponentformat="power")
    return figure
