"""Map which channels were trained by how many clients, on how many examples, and which were starved."""

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
from raysim.tracking.run_reader import RunReader

STARVED = 0.05
"""A channel is starved if fewer than this share of the client rounds trained it."""
PER_LINE = 32
"""Cells of a map side by side."""
CELLS = 1024
"""The most cells of a map; neighbours share a cell where there are more channels."""
CHOICES = (
    Choice("per cent of the client rounds", {"visible": [True, False, True, True]}),
    Choice("examples, per cent of the maximum", {"visible": [False, True, True, True]}),
)
"""The quantities that the colour of a cell can show."""
MARKERS = (
    {"symbol": "x-thin", "size": 6, "line": {"width": 2, "color": style.VERMILION}},
    {"symbol": "circle", "size": 7, "color": style.ORANGE, "line": {"width": 0}},
)
"""How channels that nobody trained, and starved ones, are marked."""
SIGNS = (("\u2715", "var(--warning)", "never trained"), ("\u25cf", style.ORANGE, "starved"))
GROUPS = 30
"""The most groups that have a map; where there are more, those that were trained least have one."""
NOT_RECORDED = (
    "This run was started before channels were counted: it has no channels.parquet. A run of this version writes it."
)
PREPARATION = (
    " Training before round 1 is not counted here: it belongs to no round, and prepares the masks that are counted. "
    "Its seconds, bytes and FLOPs are part of the headline."
)


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """How often each channel was trained over a run.

    Attributes:
        clients: The number of client rounds that trained it, `(num_units,)`.
        examples: The number of training examples of these clients, `(num_units,)`.
        rounds: The rounds that were counted, `(rounds,)`.
        untrained: The share of the channels that nobody trained, `(rounds,)`.
    """

    clients: NDArray[np.int64]
    examples: NDArray[np.int64]
    rounds: NDArray[np.int64]
    untrained: NDArray[np.float64]


def read(path: Path, num_units: int) -> Coverage:
    """Add up a table of channels, one row group at a time."""
    clients, examples = np.zeros(num_units, dtype=np.int64), np.zeros(num_units, dtype=np.int64)
    untrained: dict[int, int] = {}
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, use_threads=False)
            unit, trained_by, trained_on, round = (
                rows[name].to_numpy() for name in ("unit", "clients", "examples", "round")
            )
            np.add.at(clients, unit, trained_by)
            np.add.at(examples, unit, trained_on)
            for each in np.unique(round).tolist():
                untrained[each] = untrained.get(each, 0) + int((trained_by[round == each] == 0).sum())
    rounds = np.array(sorted(untrained), dtype=np.int64)
    share = np.array([untrained[each] for each in rounds.tolist()]) / max(1, num_units)
    return Coverage(clients, examples, rounds, share)


def section(run: RunReader, client_rounds: Mapping[int, int]) -> Section:
    """Return a map per channel group, a table of all groups, and the untrained channels by round.

    Args:
        run: The run.
        client_rounds: The number of clients that counted, by round.
    """
    title = "Coverage"
    file, groups = run.table_file("channels"), run.channel_groups
    if file is None or groups is None:
        return Section("coverage", title, NOT_RECORDED)
    if not groups:
        return Section("coverage", title, "No channel of this model can be pruned: every client trained all of them.")
    coverage = read(file, sum(groups.values()))
    total = sum(client_rounds.get(round, 0) for round in coverage.rounds.tolist())
    units = _units(groups)
    shares = coverage.clients / max(1, total)
    least_first = sorted(units, key=lambda name: float(shares[units[name]].mean()))
    shown = [name for name in units if name in least_first[:GROUPS]]
    figures = [
        Panel(
            _map(coverage, units[name], total), f"Group {name}: {size:,} channels", _cell_note(size), is_switched=True
        )
        for name, size in groups.items()
        if name in shown
    ]
    if len(coverage.rounds) > 1 and coverage.untrained.any():
        figures.append(Panel(_untrained(coverage), "Untrained channels, by round"))
    rows = [_row(name, coverage, units[name], total) for name in units]
    headings = ("channel group", "channels", "never trained", "starved", "least trained", "median", "most trained")
    text = _text(coverage, total, len(units), len(shown))
    if "clock/preparation_s" in run.rounds:
        text += PREPARATION
    html = table(headings, rows) + scale(sequential.Cividis, "0 %", "100 %", SIGNS)
    return Section("coverage", title, text, figures, html, CHOICES)


def _units(groups: Mapping[str, int]) -> dict[str, slice]:
    ends = np.cumsum([0, *groups.values()]).tolist()
    return {name: slice(start, end) for name, start, end in zip(groups, ends[:-1], ends[1:], strict=True)}


def _text(coverage: Coverage, total: int, num_groups: int, num_shown: int) -> str:
    text = (
        f"How many of the {total:,} client rounds that counted ({len(coverage.rounds):,} rounds) trained each "
        "channel. A cell is a channel, in the order of the full model; a line is numbered by its first channel. A "
        "cross marks a channel that nobody trained, a dot a starved one: fewer than "
        f"{percent(100 * STARVED, 0)} of the client rounds trained it. A channel is kept or dropped in all layers of "
        "its group together; where single weights are masked, it counts as trained if any of its own weights was."
    )
    text += " Every channel was trained in every round." * (not coverage.untrained.any())
    some = f" The maps are of the {num_shown} least trained groups, of {num_groups}."
    return text + some * (num_shown < num_groups)


def _row(name: str, coverage: Coverage, units: slice, total: int) -> tuple[str, ...]:
    clients = coverage.clients[units]
    shares = 100 * clients / max(1, total)
    never, starved = int((clients == 0).sum()), int((clients < STARVED * total).sum())
    counts = [f"{count:,}" for count in (len(clients), never, starved)]
    return name, *counts, *(percent(float(share)) for share in (shares.min(), np.median(shares), shares.max()))


def _cell_note(size: int) -> str:
    """Return the note below the map of a group of `size` channels; empty where a cell is one channel."""
    several = _per_cell(size)
    return "" if several == 1 else f"A cell is the mean of {several} neighbours, and is marked if one of them is."


def _per_cell(size: int) -> int:
    return -(-size // CELLS)


def _map(coverage: Coverage, units: slice, total: int) -> go.Figure:
    """Return a heat map: lines of channels, the first at the top."""
    clients, examples = coverage.clients[units], coverage.examples[units]
    several = _per_cell(len(clients))
    firsts = np.arange(0, len(clients), several)
    sizes = np.diff(firsts, append=len(clients))
    wide = min(PER_LINE, len(firsts))
    lines = -(-len(firsts) // wide)

    def in_lines(values: NDArray[np.generic]) -> NDArray[np.float32]:
        padded = np.full(lines * wide, np.nan, dtype=np.float32)
        padded[: len(values)] = values
        return padded.reshape(lines, wide)

    figure = go.Figure()
    named = "channel %{customdata}" if several == 1 else f"{several} channels from %{{customdata}} on, mean"
    for values, maximum, hover, is_visible in (
        (clients, total, f"%{{z:,.1~f}} of {total:,} client rounds", True),
        (examples, int(coverage.examples.max()), "%{z:,.4~s} examples", False),
    ):
        figure.add_heatmap(
            z=in_lines(np.add.reduceat(values, firsts) / sizes),
            zmin=0,
            zmax=max(1, maximum),
            xgap=1,
            ygap=1,
            colorscale=style.SEQUENTIAL,
            visible=is_visible,
            customdata=in_lines(firsts),
            showscale=False,
            hovertemplate=f"{named}: {hover}<extra></extra>",
            hoverongaps=False,
        )
    starved = (clients < STARVED * total) & (clients > 0)
    for marked, marker in zip((clients == 0, starved), MARKERS, strict=True):
        cells = np.flatnonzero(np.logical_or.reduceat(marked, firsts))
        figure.add_scatter(
            x=cells % wide, y=cells // wide, mode="markers", hoverinfo="skip", showlegend=False, marker=marker
        )
    figure.update_xaxes(visible=False, range=(-0.5, wide - 0.5))
    ticks = list(range(0, lines, max(1, -(-lines // 8))))
    figure.update_yaxes(
        tickvals=ticks,
        ticktext=[str(line * wide * several) for line in ticks],
        range=(lines - 0.5, -0.5),
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(height=20 + 18 * max(3, lines))
    return figure


def _untrained(coverage: Coverage) -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(
        x=coverage.rounds,
        y=(100 * coverage.untrained).astype(np.float32),
        mode="lines",
        line=style.line(0),
        hovertemplate="round %{x}: %{y:.1f} %<extra></extra>",
    )
    style.over_rounds(figure, len(coverage.rounds))
    figure.update_yaxes(title_text="untrained channels (%)", rangemode="tozero")
    return figure
