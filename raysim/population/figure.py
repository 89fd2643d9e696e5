"""Draw how speed, memory and bandwidths of a population's devices are distributed in each tier."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raysim.core.storage import atomic
from raysim.data.figure import colors
from raysim.population.profiles import Devices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("flops_per_s", "compute speed (GFLOP/s)", 1e9),
    ("memory_bytes", "memory for training (GB)", 1e9),
    ("down_bytes_per_s", "download (MB/s)", 1e6),
    ("up_bytes_per_s", "upload (MB/s)", 1e6),
)
BINS = 80


def draw(path: Path, devices: Devices, title: str) -> Path:
    """Draw a PNG with one panel per figure and one row per tier that has clients, each with a line at the median.

    Axes are logarithmic; each row has its own height.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tiers = [tier for tier in range(len(devices.tiers)) if (devices.tier_of == tier).any()]
    figure = Figure(figsize=(11, 2.6 + 0.9 * len(tiers)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(2, 2, sharey=True)
    for panel, (name, label, unit) in zip(axes.flat, PANELS, strict=True):
        column = devices.column(name) / unit
        _rows(panel, [column[devices.tier_of == tier] for tier in tiers])
        panel.set_xlabel(label)
        panel.set_yticks(np.arange(len(tiers)) - 0.4, [devices.tiers[tier] for tier in tiers])
        panel.tick_params("y", length=0)
        panel.set_ylim(len(tiers) - 0.7, -1)
    return atomic.write_atomically(path, lambda partial: figure.savefig(partial, format="png"))


def _rows(axes: "Axes", groups: list[NDArray[np.float64]]) -> None:
    """Draw each group's distribution above its own line, the first on top."""
    finite = [group[np.isfinite(group)] for group in groups]
    every = np.concatenate(finite)
    low, high = (every.min() / 1.5, every.max() * 1.5) if len(every) else (0.1, 10.0)
    edges = np.geomspace(low, high, BINS + 1)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _plain_ticks(axes, high / low, any_value=len(every) > 0)
    for row, (group, color) in enumerate(zip(finite, colors(len(groups)), strict=True)):
        axes.axhline(row, color="0.85", linewidth=0.8, zorder=0)
        if not len(group):
            axes.annotate("no limit", (0.5, row - 0.4), xycoords=("axes fraction", "data"), ha="center", va="center")
        elif group.min() == group.max():
            axes.vlines(group[0], row - 0.85, row, color=color, linewidth=5, alpha=0.8)
        else:
            counts = np.histogram(group, edges)[0]
            heights = row - 0.85 * counts / counts.max()
            axes.stairs(heights, edges, baseline=row, fill=True, color=color, alpha=0.8)
            axes.vlines(np.median(group), row - 0.95, row, color="black", linewidth=1.5)


def _plain_ticks(axes: "Axes", span: float, any_value: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not any_value:
        axes.set_xticks([])
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 500 else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
