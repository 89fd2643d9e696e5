"""Show when clients worked: a Gantt chart of some rounds, and how long the clients of all rounds took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from raysim.clock import outcomes
from raysim.core.tensors import Columns
from raysim.report import style
from raysim.report.clients import ClientStatistics, texts, where
from raysim.report.page import Choice, Panel, Section
from raysim.tracking.run_reader import RunReader

CLIENTS = 40
"""The most clients of a round that are shown."""
STRAGGLER = 2.0
"""A straggler takes more than this many times the median of the clients that counted."""
PHASES = (("download", style.SKY, "/"), ("compute", style.BLUE, ""), ("upload", style.GREEN, "\\"))
"""The phases of a client's work, with colour and pattern."""
PATTERNS = ("", "/", "x", "\\", "-", "|", "+", ".")
STRAGGLING = "straggler"
SIGNS = {
    STRAGGLING: ("triangle-up", style.PURPLE), "late": ("x", style.VERMILION), "surplus": ("cross", style.ORANGE),
    "unfinished": ("hourglass", style.ORANGE), "dropped": ("diamond", style.VERMILION),
    "offline": ("square", style.PURPLE), "battery": ("star", style.BLACK),
}  # fmt: skip
"""The signs at the end of a client's bar."""


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """The clients at work in a round, or a sample of them, the first to end first.

    Attributes:
        round: Counted from 1.
        rows: Their rows in the table of clients.
        begin_s: When each started, in seconds since the round began, `(clients,)`; negative for asynchronous clients
            that started before.
        phases: Seconds of download, compute and upload until each was done or stopped, `(3, clients)`.
        signs: The sign of each, a key of `SIGNS`, or empty, `(clients,)`.
        num_started: The number of clients that worked, shown or not.
        ends_s: Seconds after which the round was over.
    """

    round: int
    rows: Columns
    begin_s: NDArray[np.float64]
    phases: NDArray[np.float64]
    signs: NDArray[np.str_]
    num_started: int
    ends_s: float


def rounds_to_show(rounds: Sequence[int]) -> list[int]:
    """Return the first, the middle and the last round.

    >>> rounds_to_show([1, 2, 3, 4, 5]), rounds_to_show([1])
    ([1, 3, 5], [1])
    """
    return sorted({rounds[0], rounds[(len(rounds) - 1) // 2], rounds[-1]})


def section(run: RunReader, clients: ClientStatistics) -> Section:
    """Return the Gantt chart, the seconds of clients by round, and the outcomes of their work."""
    shown = [bars_of(rows, *_span(run, round)) for round, rows in sorted(clients.shown.items())]
    shown = [bars for bars in shown if bars.num_started]
    text = (
        "Simulated seconds of download, training and upload since the round began. Work that did not count is pale, "
        f"with a sign at its end; a straggler took more than {STRAGGLER:g} times the median of the clients that "
        "counted. The dashed line is the end of the round."
    )
    sampled = [bars for bars in shown if len(bars.begin_s) < bars.num_started]
    if sampled:
        sizes = ", ".join(f"{bars.num_started:,}" for bars in sampled)
        text += (
            f" At most {CLIENTS} clients of a round are shown (of {sizes}), evenly spread over the order in which "
            "they end, including the first and the last."
        )
    figures = [Panel(gantt(shown), "Clients at work", wide=True, is_switched=True)] if shown else []
    figures.append(Panel(_seconds(clients), "Seconds of the clients that counted"))
    if any(outcome != outcomes.COUNTED for outcome in clients.outcomes):
        figures.append(Panel(_outcomes(clients), "Outcomes of the clients that were selected"))
    return Section("timeline", "Timeline", text, figures, choices=choices_of(shown) if len(shown) > 1 else ())


def _span(run: RunReader, round: int) -> tuple[float, float]:
    """Return the simulated time at which a round began, and the seconds it took."""
    index = int(np.flatnonzero(run.rounds["round"] == round)[0])
    round_s = float(run.rounds["round_s"][index])
    return float(run.rounds["simulated_s"][index]) - round_s, round_s


def bars_of(rows: Columns, began_s: float, duration_s: float) -> Bars:
    """Return the bars of a round; of many clients a sample, evenly spread over the order in which they end.

    Args:
        rows: The rows of the round, with encoded text.
        began_s: The simulated time at which it began.
        duration_s: Its seconds.
    """
    started = np.flatnonzero(~where(rows, "fate", outcomes.ABSENT))
    end_s = rows["start_s"][started] + rows["lasts_s"][started]
    order = started[np.lexsort((rows["client"][started], end_s))]
    sample = np.unique(np.linspace(0, len(order) - 1, min(CLIENTS, len(order))).round().astype(np.int64))
    kept = order[sample] if len(order) else order
    shown = {name: column if name.endswith("_names") else column[kept] for name, column in rows.items()}
    begin_s = shown["start_s"] - began_s
    signs = texts(shown, "fate").astype("<U11")
    counted = where(rows, "fate", [outcomes.COUNTED])
    median_s = np.median(rows["total_s"][counted]) if counted.any() else np.inf
    did_count = signs == outcomes.COUNTED
    signs[did_count] = np.where(shown["total_s"][did_count] > STRAGGLER * median_s, STRAGGLING, "")
    return Bars(int(rows["round"][0]), shown, begin_s, _spent(shown), signs, len(started), duration_s)


def _spent(rows: Columns) -> NDArray[np.float64]:
    """Return the seconds of each phase until the client was done or stopped, `(3, clients)`."""
    left_s, spent = rows["lasts_s"].astype(np.float64), []
    for name in ("download_s", "compute_s", "upload_s"):
        spent.append(np.minimum(rows[name], left_s))
        left_s = left_s - spent[-1]
    return np.array(spent)


def gantt(shown: Sequence[Bars]) -> go.Figure:
    """Return one figure with the bars of all rounds, of which the first is visible."""
    figure = go.Figure()
    for bars in shown:
        for trace in _traces(bars):
            figure.add_trace(trace.update(visible=bars is shown[0]))
    tallest = max(len(bars.begin_s) for bars in shown)
    figure.update_layout(barmode="overlay", bargap=0.25, height=150 + 15 * max(8, tallest))
    figure.update_layout(**{name.replace(".", "_"): value for name, value in _layout(shown[0]).items()})
    figure.update_xaxes(title_text="simulated seconds since the round began", rangemode="tozero")
    figure.update_yaxes(showgrid=False, zeroline=False, title_text="client (id)")
    return figure


def choices_of(shown: Sequence[Bars]) -> list[Choice]:
    """Return a button for each round."""
    owner = [bars.round for bars in shown for _ in _traces(bars)]
    return [
        Choice(f"round {bars.round:,}", {"visible": [each == bars.round for each in owner]}, _layout(bars))
        for bars in shown
    ]


def _layout(bars: Bars) -> dict[str, Any]:
    """Return the layout of one round: the ids of its clients, and the line at its end."""
    end = {
        "type": "line",
        "x0": bars.ends_s,
        "x1": bars.ends_s,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "layer": "below",
        "line": {"color": style.INK, "width": 1.5, "dash": "dash"},
    }
    ids = [str(client) for client in bars.rows["client"].tolist()]
    return {
        "yaxis.tickvals": list(range(len(ids))),
        "yaxis.ticktext": ids,
        "yaxis.range": [len(ids) - 0.4, -0.6],
        "shapes": [end] if np.isfinite(bars.ends_s) else [],
    }


def _traces(bars: Bars) -> list[go.Bar | go.Scatter]:
    index, is_lost = np.arange(len(bars.begin_s)), ~np.isin(bars.signs, ("", STRAGGLING))
    tier, base = texts(bars.rows, "tier"), bars.begin_s
    traces: list[go.Bar | go.Scatter] = []
    for (name, color, pattern), duration_s in zip(PHASES, bars.phases, strict=True):
        bar = go.Bar(
            x=duration_s,
            base=base,
            y=index,
            orientation="h",
            name=name,
            customdata=np.stack([bars.rows["client"].astype(np.str_), tier], axis=1),
            marker={
                "color": color,
                "opacity": np.where(is_lost, 0.45, 1.0),
                "line": {"width": 0},
                "pattern": {"shape": pattern, "size": 5, "solidity": 0.25},
            },
            hovertemplate="client %{customdata[0]}, %{customdata[1]}: %{x:.3g} s<extra>" + name + "</extra>",
        )
        traces.append(bar)
        base = base + duration_s
    for sign in [each for each in SIGNS if (bars.signs == each).any()]:
        here, (symbol, color) = bars.signs == sign, SIGNS[sign]
        marks = go.Scatter(
            x=base[here],
            y=index[here],
            mode="markers",
            name=sign,
            marker={"symbol": symbol, "color": color, "size": 9},
            hovertemplate="ends at %{x:.3g} s",
        )
        traces.append(marks)
    return traces


def _seconds(clients: ClientStatistics) -> go.Figure:
    figure = go.Figure()
    _, p10, p50, p90, slowest = clients.seconds.T.astype(np.float32)
    figure.add_scatter(x=clients.round, y=p90, line={"width": 0}, mode="lines", showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=clients.round,
        y=p10,
        line={"width": 0},
        mode="lines",
        fill="tonexty",
        name="p10 to p90",
        hoverinfo="skip",
        fillcolor=style.faded(style.BLUE, 0.25),
    )
    for index, (name, values) in enumerate((("median", p50), ("slowest", slowest))):
        figure.add_scatter(
            x=clients.round, y=values, name=name, mode="lines", line=style.line(index), hovertemplate="%{y:.3g} s"
        )
    style.over_rounds(figure, len(clients.round))
    figure.update_yaxes(title_text="simulated seconds", rangemode="tozero")
    return figure


def _outcomes(clients: ClientStatistics) -> go.Figure:
    figure = go.Figure()
    others = [outcome for outcome in clients.outcomes if outcome != outcomes.COUNTED]
    for index, outcome in enumerate([outcomes.COUNTED, *others]):
        if outcome in clients.outcomes:
            pattern = {"shape": PATTERNS[index % len(PATTERNS)], "size": 5}
            figure.add_bar(
                x=clients.round,
                y=clients.outcomes[outcome],
                name=outcome,
                hovertemplate="%{y:,}",
                marker={"color": style.color(index), "line": {"width": 0}, "pattern": pattern},
            )
    figure.update_layout(barmode="stack", bargap=0, hovermode="x unified")
    style.over_rounds(figure, len(clients.round))
    figure.update_yaxes(title_text="clients")
    return figure
