"""Draw a calibration: measured and predicted seconds over the widths, and the errors of the prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim.calibration.fit import Calibration
from raysim.core.storage import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FITTED_COLOR, HELD_OUT_COLOR, LINE_COLOR, PLAIN_COLOR = "#0072B2", "#D55E00", "#333333", "#9A9A9A"
"""Okabe and Ito's blue and vermilion, which colour-blind people can distinguish, and two greys."""
ALLOWED_PERCENT = 20
PANEL_INCHES = 4.3
TICKS = (0.125, 0.25, 0.5, 0.75, 1.0)


def draw(path: Path, calibrations: Sequence[Calibration]) -> Path:
    """Draw one panel per model as PNG: seconds per step above, errors of the prediction below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(calibrations)
    figure = Figure(figsize=(max(6.0, PANEL_INCHES * count), 5.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        2, count, sharex="col", sharey="row" if count == 1 else False, squeeze=False, height_ratios=(2.4, 1)
    )
    limit = max(1.15 * ALLOWED_PERCENT, 115 * max(_worst(calibration) for calibration in calibrations))
    for calibration, above, below in zip(calibrations, panels[0], panels[1], strict=True):
        _seconds(above, calibration)
        _errors(below, calibration)
        below.set_ylim(-limit, limit)
    panels[0][0].set_ylabel("one training step (ms)")
    panels[1][0].set_ylabel("prediction off by (%)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4 if count > 1 else 2, frameon=False)
    return atomic.write_atomically(path, lambda partial: figure.savefig(partial, format="png"))


def _worst(calibration: Calibration) -> float:
    return max(abs(calibration.constants.error(measured)) for measured in calibration.measurements)


def _seconds(axes: "Axes", calibration: Calibration) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    dense, curve = calibration.measurements[0], calibration.curve
    widths = [load.keep_ratio for load in curve]
    predicted = [1e3 * calibration.constants.step_s(load) for load in curve]
    plain = [1e3 * dense.step_s * load.train_flops / dense.load.train_flops for load in curve]
    axes.plot(widths, plain, color=PLAIN_COLOR, linestyle=(0, (2, 2)), linewidth=1.3, label="if FLOPs were all")
    axes.plot(widths, predicted, color=LINE_COLOR, linewidth=1.6, label="predicted by the clock")
    for held_out, label in ((False, "measured, fitted"), (True, "measured, held out")):
        chosen = [measured for measured in calibration.measurements if measured.held_out == held_out]
        axes.plot(
            [measured.load.keep_ratio for measured in chosen],
            [1e3 * measured.step_s for measured in chosen],
            **_marker(held_out),
            label=label,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(calibration.model, fontsize=11)
    _tidy(axes)


def _errors(axes: "Axes", calibration: Calibration) -> None:
    axes.axhspan(-ALLOWED_PERCENT, ALLOWED_PERCENT, color="#EFEFEF", linewidth=0, zorder=0)
    axes.axhline(0, color=LINE_COLOR, linewidth=1)
    for measured in calibration.measurements:
        width, percent = measured.load.keep_ratio, 100 * calibration.constants.error(measured)
        marker = _marker(measured.held_out)
        axes.vlines(width, 0, percent, color=marker["color"], linewidth=1.2)
        axes.plot([width], [percent], **marker)
        if measured.held_out:
            axes.text(
                width,
                1.03,
                f"{round(percent):+d}",
                transform=axes.get_xaxis_transform(),
                fontsize=8,
                ha="center",
                va="bottom",
                color=HELD_OUT_COLOR,
            )
    axes.set_xlabel("keep ratio (share of channels)")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    _tidy(axes)


def _marker(held_out: bool) -> dict[str, Any]:
    shape = {"marker": "D", "color": HELD_OUT_COLOR} if held_out else {"marker": "o", "color": FITTED_COLOR}
    return {"linestyle": "none", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6, **shape}


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", which="major", color="#E3E3E3", linewidth=0.7)
    axes.set_axisbelow(True)
