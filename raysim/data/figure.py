"""Draw a partition: how many rows of which class each client owns."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysim.core.storage import atomic
from raysim.data.resample import DrawnRows
from raysim.data.row_sets import ClientRows, RowSets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS_UP_TO = 100
"""Largest number of clients that get a bar each; more are drawn as a heat map whose columns are means."""
COLUMNS = 400
DRAWN_CLIENTS = 1000
"""Number of clients that are drawn if each draws its rows whenever they are needed."""
LEGEND_UP_TO = 20


def class_counts(
    labels: NDArray[np.int64], owned: Sequence[ClientRows], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the rows of each class that clients own.

    Args:
        labels: Class of each training row, `(rows,)`.
        owned: Training and held-out rows of the clients.
        num_classes: Number of classes.

    Returns:
        Ids of the counted clients, which are all clients unless they draw their rows, and their counts,
        `(clients, num_classes)`.
    """
    total = len(owned[0])
    clients = np.arange(total)
    if isinstance(owned[0], DrawnRows) and total > DRAWN_CLIENTS:
        clients = np.linspace(0, total - 1, DRAWN_CLIENTS).astype(np.int64)
    counts = np.zeros(len(clients) * num_classes, dtype=np.int64)
    for rows in owned:
        if isinstance(rows, RowSets):
            cells = np.repeat(clients, rows.counts) * num_classes + labels[rows.rows]
            counts += np.bincount(cells, minlength=len(counts))
        else:
            counts += np.concatenate(
                [np.bincount(labels[rows[int(client)]], minlength=num_classes) for client in clients]
            )
    return clients, counts.reshape(-1, num_classes)


def draw(path: Path, labels: NDArray[np.int64], owned: Sequence[ClientRows], num_classes: int, title: str) -> Path:
    """Draw class counts per client, and how large clients are, as PNG.

    Up to 100 clients are stacked bars in order of their ids. More are columns of a heat map of class shares,
    ordered by each client's most frequent class, beside a histogram of their sizes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    clients, counts = class_counts(labels, owned, num_classes)
    figure = Figure(figsize=(11, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    seen = "" if len(clients) == len(owned[0]) else f" ({len(clients):,} of {len(owned[0]):,} clients looked at)"
    figure.suptitle(f"{title}{seen}")
    if len(clients) <= BARS_UP_TO:
        _bars(figure.subplots(), clients, counts)
    else:
        above, below = figure.subplots(2, 1, height_ratios=(3, 1))
        _shares(figure, above, below, counts)
    return atomic.write_atomically(path, lambda partial: figure.savefig(partial, format="png"))


def _bars(axes: "Axes", clients: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    num_classes = counts.shape[1]
    below = np.zeros(len(counts))
    for label, column in enumerate(counts.T):
        color = colors(num_classes)[label]
        axes.bar(clients, column, bottom=below, width=0.9, color=color, label=f"{label}", linewidth=0)
        below += column
    axes.set_xlabel("client (id)")
    axes.set_ylabel("rows owned (number)")
    axes.set_xlim(clients[0] - 0.6, clients[-1] + 0.6)
    if num_classes <= LEGEND_UP_TO:
        handles, texts = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1], texts[::-1], title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )


def _shares(figure: Any, above: "Axes", below: "Axes", counts: NDArray[np.int64]) -> None:
    sizes = counts.sum(axis=1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    top = shares.argmax(axis=1)
    order = np.lexsort((-shares.max(axis=1), top))
    columns = [piece.mean(axis=0) for piece in np.array_split(shares[order], min(COLUMNS, len(order)))]
    image = above.imshow(
        np.stack(columns, axis=1),
        aspect="auto",
        cmap="cividis",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        origin="lower",
        extent=(0, len(order), -0.5, counts.shape[1] - 0.5),
    )
    figure.colorbar(image, ax=above, label="share of a client's rows", pad=0.01)
    above.set_xlabel("clients, ordered by their most frequent class (number)")
    above.set_ylabel("class")
    if counts.shape[1] <= LEGEND_UP_TO:
        above.set_yticks(range(counts.shape[1]))
    low, high = int(sizes.min()), int(sizes.max())
    margin = 5.5 if high - low < 5 else 0.5
    edges = np.linspace(low - margin, high + margin, min(60, int(high - low + 2 * margin)) + 1)
    below.hist(sizes, bins=edges.tolist(), color=colors(1)[0])
    below.locator_params(axis="x", integer=True)
    below.set_xlabel("rows owned by a client (number)")
    below.set_ylabel("clients (number)")


def colors(count: int) -> list[str]:
    """Return Paul Tol's muted colours, safe for colour-blind people; for more than ten, steps of a colour map."""
    if count <= len(TOL_MUTED):
        return list(TOL_MUTED[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["cividis"](step)) for step in np.linspace(0, 1, count)]


TOL_MUTED = (
    "#332288", "#88CCEE", "#44AA99", "#DDCC77", "#117733", "#CC6677", "#882255", "#AA4499", "#999933", "#BBBBBB",
)  # fmt: skip
