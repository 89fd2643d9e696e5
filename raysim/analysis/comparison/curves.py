"""Accuracy against what it cost: curves from the records of runs, what a target cost, and their figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysim.analysis.study import text_tables
from raysim.core.storage import atomic
from raysim.core.tensors import Columns
from raysim.simulation import records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {"simulated_s": "simulated seconds", "megabytes": "megabytes moved", "energy_j": "joules of the devices"}
"""What accuracy is drawn against besides rounds, with the labels of the axes."""
WONG = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
"""Colours that colour-blind people tell apart (Wong, Nature Methods 8, 441, 2011)."""
DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Test accuracy of a run and what it had cost by then, arrays `(evaluations,)`."""

    accuracy: NDArray[np.float64]
    costs: Mapping[str, NDArray[np.float64]]

    def cost_of(self, target: float) -> dict[str, float | None]:
        """Return what had been spent when a target accuracy was first reached; None where it never was."""
        reached = np.flatnonzero(self.accuracy >= target)
        return {name: float(cost[reached[0]]) if len(reached) else None for name, cost in self.costs.items()}


def read(path: Path) -> Curve:
    """Return the curve in a run's `rounds.parquet`."""
    return curve_of(records.read(path))


def curve_of(rounds: Columns) -> Curve:
    """Return the curve in what was recorded of a run's rounds, evaluated ones only; without any it is empty."""
    if not rounds:
        return Curve(np.zeros(0), {name: np.zeros(0) for name in ("rounds", *COSTS)})
    accuracy = rounds["accuracy"].astype(np.float64)
    scored = ~np.isnan(accuracy)
    costs = {
        "rounds": rounds["round"], "simulated_s": rounds["simulated_s"], "megabytes": rounds["bytes"] / 1e6,
        "energy_j": rounds["energy_j"],
    }  # fmt: skip
    return Curve(accuracy[scored], {name: cost[scored].astype(np.float64) for name, cost in costs.items()})


def draw(path: Path, curves: Mapping[str, Mapping[str, Curve]], title: str, target: float) -> Path:
    """Draw one row of panels per clock mode, one column per cost, one line per method; return the path.

    Args:
        path: Where the PNG goes.
        curves: By mode, then by method.
        title: Above the figure.
        target: Accuracy that a thin line marks.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.5 * len(curves) + 1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), len(COSTS), sharex="col", sharey=True, squeeze=False)
    for row, (mode, by_method) in zip(panels, curves.items(), strict=True):
        for axes, name in zip(row, COSTS, strict=True):
            _panel(axes, by_method, name, target)
        row[0].set_ylabel(f"{mode}\n\ntest accuracy")
    for axes, label in zip(panels[-1], COSTS.values(), strict=True):
        axes.set_xlabel(label)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.suptitle(title)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return atomic.write_atomically(path, lambda partial: figure.savefig(partial, format="png"))


def _panel(axes: "Axes", by_method: Mapping[str, Curve], cost: str, target: float) -> None:
    axes.axhline(target, color="0.6", linewidth=0.8)
    for place, (method, curve) in enumerate(by_method.items()):
        axes.plot(
            curve.costs[cost], curve.accuracy, label=method, linewidth=1.8,
            color=WONG[place % len(WONG)], linestyle=DASHES[place % len(DASHES)],
        )  # fmt: skip
    if all((curve.costs[cost] > 0).all() for curve in by_method.values()):
        axes.set_xscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def target_rows(curves: Mapping[str, Mapping[str, Curve]], target: float) -> list[dict[str, Any]]:
    """Return what the target cost each method in each mode, one row each, with the last accuracy."""
    return [
        {"mode": mode, "method": method, "last_accuracy": float(curve.accuracy[-1]), **curve.cost_of(target)}
        for mode, by_method in curves.items()
        for method, curve in by_method.items()
    ]


def markdown(rows: Sequence[Mapping[str, Any]], target: float) -> str:
    """Return the rows as a Markdown table."""
    costs = [f"{unit} to {target:g}" for unit in ("seconds", "MB", "J")]
    cells = [
        [
            row["mode"], row["method"],
            *("never" if row[name] is None else f"{row[name]:,.0f}" for name in COSTS),
            f"{100 * row['last_accuracy']:.1f} %",
        ]
        for row in rows
    ]  # fmt: skip
    return text_tables.markdown(["clock mode", "method", *costs, "accuracy at the end"], cells, (0, 1)) + "\n"
