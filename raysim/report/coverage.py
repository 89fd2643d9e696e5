"""The coverage map: which channels were trained by how many clients, with how many examples, and which starved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pyarrow.parquet as pq
from numpy.typing import NDArray
from plotly.colors import sequential

from raysim.core.formatting import percent
from raysim.report import style
from raysim.report.fragments import scale, table
from raysim.report.page import Choice, Panel, Section
from raysim.report.source import Recorded

STARVED = 0.05
"""A channel is starved that less than this share of the client rounds trained."""
PER_LINE = 32
"""Channels side by side."""
CELLS = 1024
"""Most cells of a map; of more channels, neighbours share one."""
CHOICES = (
    Choice("per cent of the client rounds", {"visible": [True, False, True, True]}),
    Choice("examples, per cent of the most", {"visible": [False, True, True, True]}),
)
"""What the colour tells."""
MARKERS = (
    {"symbol": "x-thin", "size": 6, "line": {"width": 2, "color": style.VERMILION}},
    {"symbol": "circle", "size": 7, "color": style.ORANGE, "line": {"width": 0}},
)
"""Of channels that nobody trained, and of those that starved."""
SIGNS = (("\u2715", "var(--warning)", "never trained"), ("\u25cf", style.ORANGE, "starved"))
GROUPS = 30
"""Most groups that have a map; of more, those that were trained least."""
ABSENT = (
    "This run was started before channels were counted: it has no channels.parquet. A run of this version writes it."
)
UNCOUNTED = (
    " What the method trained before round 1 is not in these figures: it belongs to no round, and prepares the masks "
    "that are counted here; its seconds, bytes and FLOPs are in the headline."
)


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """How often each channel was trained over a run, arrays `(num_units,)`.

    Attributes:
        clients: Client rounds that trained it.
        examples: Training examples of those.
        rounds: Rounds that were counted.
        untrained: Share of the channels that nobody trained, by round, `(rounds,)`.
    """

    clients: NDArray[np.int64]
    examples: NDArray[np.int64]
    rounds: NDArray[np.int64]
    untrained: NDArray[np.float64]


def read(path: Path, num_units: int) -> Coverage:
    """Add up a table of channels, a row group at a time."""
    clients, examples = np.zeros(num_units, dtype=np.int64), np.zeros(num_units, dtype=np.int64)
    untrained: dict[int, int] = {}
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, use_threads=False)
            unit, by, of, round = (rows[name].to_numpy() for name in ("unit", "clients", "examples", "round"))
            np.add.at(clients, unit, by)
            np.add.at(examples, unit, of)
            for each in np.unique(round).tolist():
                untrained[each] = untrained.get(each, 0) + int((by[round == each] == 0).sum())
    rounds = np.array(sorted(untrained), dtype=np.int64)
    share = np.array([untrained[each] for each in rounds.tolist()]) / max(1, num_units)
    return Coverage(clients, examples, rounds, share)


def section(recorded: Recorded, client_rounds: Mapping[int, int]) -> Section:
    """Return a map per channel group, a table of all groups, and the channels that nobody trained by round.

    Args:
        recorded: The run.
        client_rounds: How many clients' work counted, by round.
    """
    title = "Coverage"
    if not recorded.has("channels.parquet") or recorded.groups is None:
        return Section("coverage", title, ABSENT)
    if not recorded.groups:
        return Section("coverage", title, "No channel of this model can be pruned: all were trained by everybody.")
    coverage = read(recorded.files / "channels.parquet", sum(recorded.groups.values()))
    total = sum(client_rounds.get(round, 0) for round in coverage.rounds.tolist())
    units = _units(recorded.groups)
    shares = coverage.clients / max(1, total)
    least_first = sorted(units, key=lambda name: float(shares[units[name]].mean()))
    shown = [name for name in units if name in least_first[:GROUPS]]
    figures = [
        Panel(_map(coverage, units[name], total), f"Group {name}: {size:,} channels", _shared(size), is_switched=True)
        for name, size in recorded.groups.items()
        if name in shown
    ]
    if len(coverage.rounds) > 1 and coverage.untrained.any():
        figures.append(Panel(_untrained(coverage), "Channels that nobody trained, by round"))
    rows = [_row(name, coverage, units[name], total) for name in units]
    headings = ("channel group", "channels", "never trained", "starved", "least trained", "median", "most trained")
    text = _text(coverage, total, len(units), len(shown))
    if "clock/preparation_s" in recorded.rounds:
        text += UNCOUNTED
    html = table(headings, rows) + scale(sequential.Cividis, "0 %", "100 %", SIGNS)
    return Section("coverage", title, text, figures, html, CHOICES)


def _units(groups: Mapping[str, int]) -> dict[str, slice]:
    ends = np.cumsum([0, *groups.values()]).tolist()
    return {name: slice(start, end) for name, start, end in zip(groups, ends[:-1], ends[1:], strict=True)}


def _text(coverage: Coverage, total: int, num_groups: int, num_shown: int) -> str:
    text = (
        f"How many of the {total:,} client rounds whose work counted ({len(coverage.rounds):,} rounds) trained each "
        "channel: a cell is a channel, in the order of the full model, and a line is numbered by its first one. A "
        "cross marks a channel that nobody trained, a dot one that starved: fewer than "
        f"{percent(100 * STARVED, 0)} of the client rounds trained it. A channel is kept or dropped in all layers of "
        "its group together; where single weights are masked, it was trained if any of its own was."
    )
    text += " Somebody trained each channel in every round." * (not coverage.untrained.any())
    some = f" Maps are those of the {num_shown} groups trained least, of {num_groups}."
    return text + some * (num_shown < num_groups)


def _row(name: str, coverage: Coverage, units: slice, total: int) -> tuple[str, ...]:
    by = coverage.clients[units]
    shares = 100 * by / max(1, total)
    never, starved = int((by == 0).sum()), int((by < STARVED * total).sum())
    return (
        name, f"{len(by):,}", f"{never:,}", f"{starved:,}",
        percent(shares.min()), percent(float(np.median(shares))), percent(shares.max()),
    )  # fmt: skip


def _shared(size: int) -> str:
    """Return what a cell of a group of so many channels stands for; empty = for one channel."""
    several = _per_cell(size)
    return "" if several == 1 else f"A cell is the mean of {several} neighbours, marked if one of them is."


def _per_cell(size: int) -> int:
    return -(-size // CELLS)


def _map(coverage: Coverage, units: slice, total: int) -> go.Figure:
    """Return a heat map: lines of channels, the first at the top."""
    by, of = coverage.clients[units], coverage.examples[units]
    several = _per_cell(len(by))
    firsts = np.arange(0, len(by), several)
    sizes = np.diff(firsts, append=len(by))
    wide = min(PER_LINE, len(firsts))
    lines = -(-len(firsts) // wide)

    def in_lines(values: NDArray[np.generic]) -> NDArray[np.float32]:
        padded = np.full(lines * wide, np.nan, dtype=np.float32)
        padded[: len(values)] = values
        return padded.reshape(lines, wide)

    figure = go.Figure()
    named = "channel %{customdata}" if several == 1 else f"{several} channels from %{{customdata}} on, mean"
    for values, most, told, is_shown in (
        (by, total, f"%{{z:,.1~f}} of {total:,} client rounds", True),
        (of, int(coverage.examples.max()), "%{z:,.4~s} examples", False),
    ):
        figure.add_heatmap(
            z=in_lines(np.add.reduceat(values, firsts) / sizes), zmin=0, zmax=max(1, most), xgap=1, ygap=1,
            colorscale=style.SEQUENTIAL, visible=is_shown, customdata=in_lines(firsts), showscale=False,
            hovertemplate=f"{named}: {told}<extra></extra>", hoverongaps=False,
        )  # fmt: skip
    starved = (by < STARVED * total) & (by > 0)
    for marked, marker in zip((by == 0, starved), MARKERS, strict=True):
        at = np.flatnonzero(np.logical_or.reduceat(marked, firsts))
        figure.add_scatter(
            x=at % wide, y=at // wide, mode="markers", hoverinfo="skip", showlegend=False, marker=marker
        )
    figure.update_xaxes(visible=False, range=(-0.5, wide - 0.5))
    ticks = list(range(0, lines, max(1, -(-lines // 8))))
    figure.update_yaxes(
        tickvals=ticks, ticktext=[str(line * wide * several) for line in ticks], range=(lines - 0.5, -0.5),
        showgrid=False, zeroline=False,
    )  # fmt: skip
    figure.update_layout(height=20 + 18 * max(3, lines))
    return figure


def _untrained(coverage: Coverage) -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(
        x=coverage.rounds, y=(100 * coverage.untrained).astype(np.float32), mode="lines", line=style.line(0),
        hovertemplate="round %{x}: %{y:.1f} %<extra></extra>",
    )  # fmt: skip
    style.over_rounds(figure, len(coverage.rounds))
    figure.update_yaxes(title_text="untrained channels (%)", rangemode="tozero")
    return figure
