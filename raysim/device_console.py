"""What a person reads about devices: the table of a preset or a file, the list of presets."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysim.device_presets import PRESETS, Preset

Summary = Sequence[Mapping[str, Any]]


def console() -> Console:
    """Return standard output, wide where nobody watches."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def print_presets() -> None:
    """Print a line for each preset."""
    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        console().print(f"{name:{width}}  {preset.summary}", markup=False)


def print_devices(title: str, summary: Summary, preset: Preset | None) -> None:
    """Print a table of the tiers, and where a preset's figures come from."""
    console().print(devices_table(title, summary))
    console().print(
        "of figures that differ within a tier: the median, and the p10 and p90 of its clients", style="dim"
    )
    if preset is not None:
        for source in preset.sources:
            console().print(f"source: {source}", markup=False)
        console().print(f"illustrative, without a source: {preset.illustrative}", markup=False)


COLUMNS = (
    ("keep", "keep_ratio", 1.0), ("speed\nGFLOP/s", "flops_per_s", 1e9), ("down\nMB/s", "down_bytes_per_s", 1e6),
    ("up\nMB/s", "up_bytes_per_s", 1e6), ("memory\nGB", "memory_bytes", 1e9), ("latency\nms", "latency_s", 1e-3),
    ("training\nW", "train_watts", 1.0), ("radio\nuJ/B", "radio_j_per_byte", 1e-6), ("battery\nkJ", "battery_j", 1e3),
    ("online", "availability", 0.01), ("drops out", "failure_rate", 0.01),
)  # fmt: skip
"""Heading, figure, and its unit."""
PERCENT = 0.01


def devices_table(title: str, summary: Summary) -> Table:
    """Return the tiers of a population as a table."""
    table = Table(title=Text(title, style="italic"))
    for heading in ("tier", "clients", "share", *(column[0] for column in COLUMNS)):
        table.add_column(heading, justify="left" if heading == "tier" else "right")
    for tier in summary:
        cells = [_cell(tier[figure], unit) for _, figure, unit in COLUMNS]
        table.add_row(tier["tier"], f"{tier['clients']:,}", f"{tier['share']:.2%}", *cells)
    return table


def _cell(value: float | Sequence[float | None] | None, unit: float) -> str:
    values = list(value) if isinstance(value, Sequence) else [value]
    texts = ["any" if each is None else f"{each / unit:.3g}" + " %" * (unit == PERCENT) for each in values]
    return texts[0] if len(set(texts)) == 1 else f"{texts[1]}\n{texts[0]} - {texts[2]}"
