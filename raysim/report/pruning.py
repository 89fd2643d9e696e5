"""Show how much was pruned: by tier, over all clients, and client by client."""

import numpy as np
import plotly.graph_objects as go

from raysim.report import style
from raysim.report.clients import ClientStatistics
from raysim.report.page import Panel, Section

EACH_UP_TO = 100
"""The most clients that are shown one by one; with more clients, the spread of each tier is shown."""
PERCENTS = np.linspace(0, 100, 101)


def section(clients: ClientStatistics) -> Section:
    """Return pruning ratios by tier and by client."""
    text = (
        "The pruning ratio is the share of the full model's parameters that a client does not train. Only clients "
        "whose work counted are included."
    )
    figures = [Panel(_tiers(clients), "Mean of each tier, by round"), Panel(_band(clients), "Spread over clients")]
    seen = np.flatnonzero(clients.counted)
    if 0 < len(seen) <= EACH_UP_TO:
        figures.append(Panel(_each(clients), "Mean of each client", wide=True))
    elif len(seen):
        note = f"Each client's mean over its rounds: {len(seen):,} clients, sorted within their tier."
        figures.append(Panel(_sorted(clients), "Percentiles over the clients of each tier", note, wide=True))
    return Section("pruning", "Pruning ratio", text, figures)


def _tiers(clients: ClientStatistics) -> go.Figure:
    figure = go.Figure()
    for index, (tier, ratios) in enumerate(clients.tier_pruning.items()):
        figure.add_scatter(
            x=clients.round,
            y=(100 * ratios).astype(np.float32),
            name=tier,
            line=style.line(index),
            connectgaps=True,
            mode="lines+markers" if len(clients.round) <= 40 else "lines",
            marker={"symbol": style.SYMBOLS[index % 8]},
            hovertemplate="%{y:.1f} %",
        )
    style.over_rounds(figure, len(clients.round))
    return _labelled(figure)


def _band(clients: ClientStatistics) -> go.Figure:
    figure = go.Figure()
    low, p10, p50, p90, high = (100 * clients.pruning.T).astype(np.float32)
    for upper, lower, name, opacity in ((high, low, "lowest to highest", 0.12), (p90, p10, "p10 to p90", 0.25)):
        figure.add_scatter(
            x=clients.round, y=upper, line={"width": 0}, showlegend=False, hoverinfo="skip", mode="lines"
        )
        figure.add_scatter(
            x=clients.round,
            y=lower,
            line={"width": 0},
            fill="tonexty",
            mode="lines",
            name=name,
            hoverinfo="skip",
            fillcolor=style.faded(style.BLUE, opacity),
        )
    figure.add_scatter(
        x=clients.round, y=p50, name="median", line=style.line(0), mode="lines", hovertemplate="%{y:.1f} %"
    )
    style.over_rounds(figure, len(clients.round))
    return _labelled(figure)


def _each(clients: ClientStatistics) -> go.Figure:
    figure = go.Figure()
    for index, tier in enumerate(clients.tier_pruning):
        members = np.flatnonzero((clients.tier_of == tier) & (clients.counted > 0))
        figure.add_scatter(
            x=members,
            y=100 * clients.mean_pruning[members],
            mode="markers",
            name=tier,
            customdata=clients.counted[members],
            marker={"color": style.color(index), "symbol": style.SYMBOLS[(index + index // 8) % 8], "size": 9},
            hovertemplate="client %{x}: %{y:.1f} %, counted in %{customdata} rounds",
        )
    figure.update_xaxes(title_text="client (id)")
    return _labelled(figure)


def _sorted(clients: ClientStatistics) -> go.Figure:
    figure = go.Figure()
    for index, tier in enumerate(clients.tier_pruning):
        ratios = clients.mean_pruning[(clients.tier_of == tier) & (clients.counted > 0)]
        figure.add_scatter(
            x=PERCENTS,
            y=100 * np.percentile(ratios, PERCENTS),
            name=f"{tier} ({len(ratios):,})",
            mode="lines",
            line=style.line(index),
            hovertemplate="%{x:.0f} % of the clients up to %{y:.1f} %",
        )
    figure.update_xaxes(title_text="per cent of the tier's clients", range=(-0.5, 100.5))
    return _labelled(figure)


def _labelled(figure: go.Figure) -> go.Figure:
    figure.update_yaxes(title_text="pruning ratio (%)", range=(-3, 103))
    return figure
