"""Report a calibration: as tables, as lines for an experiment file, and completely as JSON."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from math import isinf
from typing import Any

import torch
from rich import box
from rich.table import Table

from raysim.calibration.fit import Calibration, Constants, Measurement

FASTEST_FLOPS_PER_S = 1e18
"""Speed where FLOPs are not charged: an experiment needs a number, and with this one they cost less than 1 ns."""
NOISY_SPREAD = 0.2
"""Spread from which a machine counts as busy; on an idle one the median repeat is 5 to 10 % above the fastest."""


def table(calibration: Calibration) -> Table:
    """Return the measured and predicted milliseconds per step of every width, widest first."""
    shape = " x ".join(map(str, calibration.input_shape))
    title = f"{calibration.model}, inputs {shape}, steps of {calibration.batch_size} rows"
    found = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("keep ratio", "parameters", "MFLOP/step", "measured ms", "predicted ms", "error %", ""):
        found.add_column(heading, justify="right" if heading else "left")
    for measured in calibration.measurements:
        style = "bold" if measured.held_out else ""
        found.add_row(*_cells(measured, calibration.constants), style=style)
    return found


def _cells(measured: Measurement, constants: Constants) -> list[str]:
    load = measured.load
    return [
        f"{load.keep_ratio:g}",
        f"{load.parameters:,}",
        f"{load.train_flops / 1e6:,.1f}",
        f"{1e3 * measured.step_s:,.2f}",
        f"{1e3 * constants.step_s(load):,.2f}",
        f"{100 * constants.error(measured):+.1f}",
        "held out" if measured.held_out else "fitted",
    ]


def summary_lines(calibration: Calibration) -> list[str]:
    """Return the errors of the held-out widths, and a warning if the machine was busy."""
    lines = [
        f"held-out widths: largest error {100 * calibration.largest_error:.1f} %, "
        f"median {100 * calibration.median_error:.1f} %; "
        f"repeats took {100 * calibration.spread:.0f} % longer than the fastest, in the median"
    ]
    if calibration.spread > NOISY_SPREAD:
        lines.append("the machine was busy: measure again when it is idle, or with more --repeats")
    return lines


def tier_yaml(calibration: Calibration) -> str:
    """Return the lines to paste into a tier of an experiment file."""
    return "".join(f"{name}: {_yaml(value)}\n" for name, value in _settings(calibration.constants).items())


def _settings(constants: Constants) -> dict[str, float | None]:
    memory = constants.memory_bytes_per_s
    return {
        "flops_per_s": min(constants.flops_per_s, FASTEST_FLOPS_PER_S),
        "step_overhead_s": constants.step_overhead_s,
        "memory_bytes_per_s": None if isinf(memory) else memory,
    }


def _yaml(value: float | None) -> str:
    """Write a number with point and sign, so that every version of YAML reads it as a number."""
    return "null" if value is None else f"{value:.3e}"


def markdown(calibrations: Sequence[Calibration]) -> str:
    """Return the errors of all models' held-out widths as a Markdown table, one row per model."""
    ratios = sorted({ratio for calibration in calibrations for ratio in calibration.held_out}, reverse=True)
    headings = [*(f"{ratio:g}" for ratio in ratios), "largest", "median"]
    lines = [_row("model, error % at keep ratio", headings), _row("---", ["---:"] * len(headings))]
    for each in calibrations:
        cells = [f"{100 * each.held_out[ratio]:+.1f}" if ratio in each.held_out else "-" for ratio in ratios]
        totals = [f"{100 * error:.1f}" for error in (each.largest_error, each.median_error)]
        lines.append(_row(f"`{each.model}`", [*cells, *totals]))
    return "\n".join(lines) + "\n"


def _row(first: str, others: Sequence[str]) -> str:
    return f"| {first} | {' | '.join(others)} |"


def to_json(calibrations: Sequence[Calibration]) -> dict[str, Any]:
    """Return all measurements and fits, with the machine."""
    return {"models": [_model(calibration) for calibration in calibrations], "machine": machine()}


def machine() -> dict[str, Any]:
    """Return the machine on which the seconds depend: type and number of CPUs, and versions."""
    return {
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "cpus": os.cpu_count(),
        "threads": 1,
        "versions": {"python": platform.python_version(), "torch": version("torch"), "raysim": version("raysim")},
    }


def _model(calibration: Calibration) -> dict[str, Any]:
    return {
        "model": calibration.model,
        "input_shape": list(calibration.input_shape),
        "num_classes": calibration.num_classes,
        "batch_size": calibration.batch_size,
        "tier": _settings(calibration.constants),
        "largest_error": calibration.largest_error,
        "median_error": calibration.median_error,
        "spread": calibration.spread,
        "widths": [_width(calibration.constants, measured) for measured in calibration.measurements],
    }


def _width(constants: Constants, measured: Measurement) -> dict[str, Any]:
    load = measured.load
    return {
        "keep_ratio": load.keep_ratio,
        "held_out": measured.held_out,
        "parameters": load.parameters,
        "train_flops_per_step": load.train_flops,
        "activation_bytes_per_step": load.activation_bytes,
        "measured_s": measured.step_s,
        "predicted_s": constants.step_s(load),
        "error": constants.error(measured),
        "repeats_s": list(measured.repeats_s),
    }
