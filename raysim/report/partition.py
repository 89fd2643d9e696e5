"""Show which classes each client's rows belong to, and how many rows clients own."""

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from raysim.core.tensors import Columns
from raysim.report import style
from raysim.report.fragments import image, paragraph
from raysim.report.page import Panel, Section
from raysim.tracking.run_reader import RunReader

EACH_UP_TO = 100
"""The most clients that have a column each; with more clients, a column is a mean over neighbours."""
COLUMNS = 200
BINS = 40
NOT_RECORDED = "This run was started before partitions were recorded: it has no partition.parquet."
UNFINISHED = "The partition is recorded when a run has finished."


def section(run: RunReader) -> Section:
    """Return a heat map of classes and clients, and a histogram of the rows that clients own."""
    table = run.partition
    if not table:
        html = paragraph(NOT_RECORDED if run.summary else UNFINISHED)
        picture = run.file("partition.png")
        if picture is not None:
            html += image(picture.read_bytes(), "rows of each class that clients own, as drawn at the end of the run")
        return Section("partition", "Data partition", html=html)
    clients, counts = counts_of(table)
    data, num_clients = run.settings.data, run.settings.population.clients
    given = data.partition.model_dump(exclude={"name"}, exclude_none=True)
    options = ", ".join(f"{name} {value}" for name, value in given.items())
    text = f"{data.name}, partitioned by {data.partition.name}" + (f" ({options})" if options else "")
    text += ". Training and held-out rows together."
    if len(clients) < num_clients:
        text += f" {len(clients):,} of {num_clients:,} clients are shown, evenly spread over their ids."
    maps = _each(clients, counts) if len(clients) <= EACH_UP_TO else _means(counts)
    return Section("partition", "Data partition", text, [maps, Panel(_sizes(counts), "Rows owned by a client")])


def counts_of(table: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids of the clients, `(clients,)`, and their rows of each class, `(clients, classes)`."""
    clients, index = np.unique(table["client"], return_inverse=True)
    counts = np.zeros((len(clients), int(table["label"].max(initial=0)) + 1), dtype=np.int64)
    counts[index, table["label"]] = table["rows"]
    return clients, counts


def _each(clients: NDArray[np.int64], counts: NDArray[np.int64]) -> Panel:
    figure = _heat_map(counts.T, clients, "client (id)", "rows", "client %{x}, class %{y}: %{z} rows")
    return Panel(figure, "Rows of each class", wide=True)


def _means(counts: NDArray[np.int64]) -> Panel:
    shares = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    pieces = np.array_split(shares[order], min(COLUMNS, len(order)))
    ends = np.cumsum([len(piece) for piece in pieces])
    columns = (100 * np.stack([piece.mean(axis=0) for piece in pieces], axis=1)).astype(np.float32)
    figure = _heat_map(
        columns,
        ends,
        "clients, by their most frequent class (number)",
        "% of rows",
        "class %{y}: %{z:.0f} % of the rows of clients up to the %{x}th",
    )
    note = f"{len(order):,} clients in {len(pieces)} columns, each the mean of the clients in it."
    return Panel(figure, "Share of each class in a client's rows", note, wide=True)


def _heat_map(values: NDArray[np.generic], x: NDArray[np.int64], label: str, unit: str, hover: str) -> go.Figure:
    figure = go.Figure()
    figure.add_heatmap(
        z=values,
        x=x,
        zmin=0,
        colorscale=style.SEQUENTIAL,
        hovertemplate=f"{hover}<extra></extra>",
        colorbar={"title": {"text": unit}, "thickness": 10, "outlinewidth": 0},
    )
    figure.update_xaxes(title_text=label, showgrid=False)
    figure.update_yaxes(title_text="class", showgrid=False, dtick=1 if len(values) <= 20 else None)
    return figure


def _sizes(counts: NDArray[np.int64]) -> go.Figure:
    sizes = counts.sum(axis=1)
    low, high = int(sizes.min()), int(sizes.max())
    width = max(1, -(-(high - low + 1) // BINS))
    edges = np.arange(low, high + width + 1, width)
    numbers, _ = np.histogram(sizes, edges)
    figure = go.Figure()
    figure.add_bar(
        x=edges[:-1] + (width - 1) / 2,
        y=numbers,
        width=width,
        marker={"color": style.BLUE, "line": {"width": 0}},
        customdata=np.stack([edges[:-1], edges[1:] - 1], axis=1),
        hovertemplate="%{customdata[0]} to %{customdata[1]} rows: %{y:,} clients<extra></extra>",
    )
    figure.update_layout(bargap=0.05)
    shown = (low - 0.5 - width, edges[-1] - 0.5 + width)
    figure.update_xaxes(title_text="rows owned", range=shown, dtick=1 if high - low < 12 else None)
    figure.update_yaxes(title_text="clients")
    return figure
