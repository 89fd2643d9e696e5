"""When clients worked: a Gantt of simulated seconds of some rounds, and how long rounds took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from raysim.clock.outcomes import ABSENT, COUNTED
from raysim.core.tensors import Columns
from raysim.report import style
from raysim.report.clients import ClientsOfRounds, texts, where
from raysim.report.page import Choice, Panel, Section
from raysim.report.source import Recorded

CLIENTS = 40
"""Most clients of a round that are shown."""
STRAGGLER = 2.0
"""Who takes so many times the median of those who counted is a straggler."""
PHASES = (("download", style.SKY, "/"), ("compute", style.BLUE, ""), ("upload", style.GREEN, "\\"))
"""What a client does, its colour, and its pattern."""
STRAGGLING = "straggler"
SIGNS = {
    STRAGGLING: ("triangle-up", style.PURPLE), "late": ("x", style.VERMILION), "surplus": ("cross", style.ORANGE),
    "unfinished": ("hourglass", style.ORANGE), "dropped": ("diamond", style.VERMILION),
    "offline": ("square", style.PURPLE), "battery": ("star", style.BLACK),
}  # fmt: skip
"""How ends of work are marked."""


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """A round's clients at work, those that are shown, the first to end first.

    Attributes:
        round: Counted from 1.
        rows: Their rows.
        begin_s: When each started, in seconds since the round began; asynchronous ones may have before, `(clients,)`.
        phases: Seconds of download, compute and upload until they were done or stopped, `(3, clients)`.
        signs: What became of each, a key of `SIGNS`, or nothing.
        num_started: How many clients there are.
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


def section(recorded: Recorded, clients: ClientsOfRounds) -> Section:
    """Return the Gantt, seconds over rounds, and what became of the work."""
    shown = [bars_of(rows, *_span(recorded, round)) for round, rows in sorted(clients.shown.items())]
    shown = [bars for bars in shown if bars.num_started]
    text = (
        "Simulated seconds of download, training and upload since the round began. Work that did not count is pale, "
        f"with a sign at its end; a straggler took more than {STRAGGLER:g} times the median of those who counted. "
        "The dashed line is the end of the round."
    )
    sampled = [bars for bars in shown if len(bars.begin_s) < bars.num_started]
    if sampled:
        sizes = ", ".join(f"{bars.num_started:,}" for bars in sampled)
        text += (
            f" Of more than {CLIENTS} clients some are shown, evenly spread over the order in which they end, the "
            f"first and the last among them: {CLIENTS} of {sizes}."
        )
    figures = [Panel(gantt(shown), "Clients at work", wide=True, is_switched=True)] if shown else []
    figures.append(Panel(_seconds(clients), "Seconds of the clients that counted"))
    if any(outcome != COUNTED for outcome in clients.outcomes):
        figures.append(Panel(_outcomes(clients), "What became of the clients that were asked"))
    return Section("timeline", "Timeline", text, figures, choices=choices_of(shown) if len(shown) > 1 else ())


def _span(recorded: Recorded, round: int) -> tuple[float, float]:
    """Return the simulated time at which a round began, and the seconds it took."""
    place = int(np.flatnonzero(recorded.rounds["round"] == round)[0])
    round_s = float(recorded.rounds["round_s"][place])
    return float(recorded.rounds["simulated_s"][place]) - round_s, round_s


def bars_of(rows: Columns, began_s: float, duration_s: float) -> Bars:
    """Return the bars of a round; of many clients some, evenly spread over the order in which they end.

    Args:
        rows: The round's rows, text as codes.
        began_s: Simulated time at which it began.
        duration_s: Its seconds.
    """
    started = np.flatnonzero(~where(rows, "fate", ABSENT))
    end_s = rows["start_s"][started] + rows["lasts_s"][started]
    order = started[np.lexsort((rows["client"][started], end_s))]
    places = np.unique(np.linspace(0, len(order) - 1, min(CLIENTS, len(order))).round().astype(np.int64))
    own = order[places] if len(order) else order
    taken = {name: column if name.endswith("_names") else column[own] for name, column in rows.items()}
    begin_s = taken["start_s"] - began_s
    signs = texts(taken, "fate").astype("<U11")
    counted = where(rows, "fate", [COUNTED])
    median_s = np.median(rows["total_s"][counted]) if counted.any() else np.inf
    mine = signs == COUNTED
    signs[mine] = np.where(taken["total_s"][mine] > STRAGGLER * median_s, STRAGGLING, "")
    return Bars(int(rows["round"][0]), taken, begin_s, _spent(taken), signs, len(started), duration_s)


def _spent(rows: Columns) -> NDArray[np.float64]:
    """Return the seconds of each phase until the client was done or stopped, `(3, clients)`."""
    left_s, spent = rows["lasts_s"].astype(np.float64), []
    for name in ("download_s", "compute_s", "upload_s"):
        spent.append(np.minimum(rows[name], left_s))
        left_s = left_s - spent[-1]
    return np.array(spent)


def gantt(shown: Sequence[Bars]) -> go.Figure:
    """Return a figure of the first round that holds the others, too."""
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
    """Return what belongs to one round: its clients' names, and where it ended."""
    end = {
        "type": "line", "x0": bars.ends_s, "x1": bars.ends_s, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
        "line": {"color": style.INK, "width": 1.5, "dash": "dash"},
    }  # fmt: skip
    ids = [str(client) for client in bars.rows["client"].tolist()]
    return {
        "yaxis.tickvals": list(range(len(ids))), "yaxis.ticktext": ids, "yaxis.range": [len(ids) - 0.4, -0.6],
        "shapes": [end] if np.isfinite(bars.ends_s) else [],
    }  # fmt: skip


def _traces(bars: Bars) -> list[go.Bar | go.Scatter]:
    place, lost = np.arange(len(bars.begin_s)), ~np.isin(bars.signs, ("", STRAGGLING))
    tier, traces, base = texts(bars.rows, "tier"), [], bars.begin_s
    for (name, color, pattern), duration_s in zip(PHASES, bars.phases, strict=True):
        traces.append(go.Bar(
            x=duration_s, base=base, y=place, orientation="h", name=name,
            customdata=np.stack([bars.rows["client"].astype(np.str_), tier], axis=1),
            marker={
                "color": color, "opacity": np.where(lost, 0.45, 1.0), "line": {"width": 0},
                "pattern": {"shape": pattern, "size": 5, "solidity": 0.25},
            },
            hovertemplate="client %{customdata[0]}, %{customdata[1]}: %{x:.3g} s<extra>" + name + "</extra>",
        ))  # fmt: skip
        base = base + duration_s
    for sign in [each for each in SIGNS if (bars.signs == each).any()]:
        here, (symbol, color) = bars.signs == sign, SIGNS[sign]
        traces.append(go.Scatter(
            x=base[here], y=place[here], mode="markers", name=sign,
            marker={"symbol": symbol, "color": color, "size": 9}, hovertemplate="ends at %{x:.3g} s",
        ))  # fmt: skip
    return traces


def _seconds(clients: ClientsOfRounds) -> go.Figure:
    figure = go.Figure()
    _, p10, p50, p90, slowest = clients.seconds.T.astype(np.float32)
    figure.add_scatter(x=clients.round, y=p90, line={"width": 0}, mode="lines", showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=clients.round, y=p10, line={"width": 0}, mode="lines", fill="tonexty", name="p10 to p90", hoverinfo="skip",
        fillcolor=style.faded(style.BLUE, 0.25),
    )  # fmt: skip
    for place, (name, values) in enumerate((("median", p50), ("slowest", slowest))):
        figure.add_scatter(
            x=clients.round, y=values, name=name, mode="lines", line=style.line(place), hovertemplate="%{y:.3g} s"
        )
    style.over_rounds(figure, len(clients.round))
    figure.update_yaxes(title_text="simulated seconds", rangemode="tozero")
    return figure


def _outcomes(clients: ClientsOfRounds) -> go.Figure:
    figure = go.Figure()
    others = [outcome for outcome in clients.outcomes if outcome != COUNTED]
    for place, outcome in enumerate([COUNTED, *others]):
        if outcome in clients.outcomes:
            figure.add_bar(
                x=clients.round, y=clients.outcomes[outcome], name=outcome, hovertemplate="%{y:,}",
                marker={"color": style.color(place), "line": {"width": 0},
                        "pattern": {"shape": ("", "/", "x", "\\", "-", "|", "+", ".")[place % 8], "size": 5}},
            )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0, hovermode="x unified")
    style.over_rounds(figure, len(clients.round))
    figure.update_yaxes(title_text="clients")
    return figure
