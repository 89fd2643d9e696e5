"""Who owns what: classes of each client's rows, and how many rows there are."""

import numpy as np
import plotly.graph_objects as go
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysim.report import style
from raysim.report.fragments import image, paragraph
from raysim.report.page import Panel, Section
from raysim.report.source import Recorded

EACH_UP_TO = 100
"""Most clients that have a column of their own; of more, columns are means over neighbours."""
COLUMNS = 200
BINS = 40
ABSENT = "This run was started before the partition was written down: it has no partition.parquet."
LATER = "The partition is written down when a run has finished."


def section(recorded: Recorded) -> Section:
    """Return a heat map of classes and clients, and how many rows clients own."""
    if not recorded.has("partition.parquet"):
        html = paragraph(ABSENT if recorded.summary else LATER)
        if recorded.has("partition.png"):
            picture = (recorded.files / "partition.png").read_bytes()
            html += image(picture, "rows of each class that clients own, as drawn when the run was made")
        return Section("partition", "Data partition", html=html)
    clients, counts = read(recorded)
    dealt = recorded.settings["data"]["partition"]
    options = ", ".join(f"{name} {value}" for name, value in dealt.items() if name != "name" and value is not None)
    text = f"{recorded.settings['data']['name']}, dealt by {dealt['name']}" + (f" ({options})" if options else "")
    text += ". Training and held-out rows together."
    if len(clients) < recorded.num_clients:
        text += f" {len(clients):,} of {recorded.num_clients:,} clients, evenly spread, are looked at."
    maps = _each(clients, counts) if len(clients) <= EACH_UP_TO else _means(counts)
    return Section("partition", "Data partition", text, [maps, Panel(_sizes(counts), "Rows owned by a client")])


def read(recorded: Recorded) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids of clients that were looked at, `(clients,)`, and their rows of each class, `(clients, classes)`."""
    table = pq.read_table(recorded.files / "partition.parquet")
    client, label, rows = (table[name].to_numpy() for name in ("client", "label", "rows"))
    clients, place = np.unique(client, return_inverse=True)
    counts = np.zeros((len(clients), int(label.max(initial=0)) + 1), dtype=np.int64)
    counts[place, label] = rows
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
        columns, ends, "clients, by their most frequent class (number)", "% of rows",
        "class %{y}: %{z:.0f} % of the rows of clients up to the %{x}th",
    )  # fmt: skip
    note = f"{len(order):,} clients in {len(pieces)} columns, each the mean of the clients in it."
    return Panel(figure, "Share of each class in a client's rows", note, wide=True)


def _heat_map(
    values: NDArray[np.generic], x: NDArray[np.int64], label: str, unit: str, hover: str
) -> go.Figure:  # fmt: skip
    figure = go.Figure()
    figure.add_heatmap(
        z=values, x=x, zmin=0, colorscale=style.SEQUENTIAL, hovertemplate=f"{hover}<extra></extra>",
        colorbar={"title": {"text": unit}, "thickness": 10, "outlinewidth": 0},
    )  # fmt: skip
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
        x=edges[:-1] + (width - 1) / 2, y=numbers, width=width, marker={"color": style.BLUE, "line": {"width": 0}},
        customdata=np.stack([edges[:-1], edges[1:] - 1], axis=1),
        hovertemplate="%{customdata[0]} to %{customdata[1]} rows: %{y:,} clients<extra></extra>",
    )  # fmt: skip
    figure.update_layout(bargap=0.05)
    shown = (low - 0.5 - width, edges[-1] - 0.5 + width)
    figure.update_xaxes(title_text="rows owned", range=shown, dtick=1 if high - low < 12 else None)
    figure.update_yaxes(title_text="clients")
    return figure
