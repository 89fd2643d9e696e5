"""Print the devices of a population as tables in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import inf
from typing import Any

from rich.table import Table
from rich.text import Text

from raysim.core.formatting import output
from raysim.population.presets import PRESETS, Preset
from raysim.population.profiles import DeviceProfile
from raysim.population.summary import SPREAD_OUT

Summary = Sequence[Mapping[str, Any]]
Column = tuple[str, str, float]
"""Heading, figure, and the unit that it is shown in."""


def print_presets() -> None:
    """Print a line for each preset."""
    width = max(map(len, PRESETS))
    for name, each in PRESETS.items():
        output().print(f"{name:{width}}  {each.summary}")


def print_devices(title: str, summary: Summary, preset: Preset | None) -> None:
    """Print a table of the tiers, and where a preset's figures come from."""
    output().print(devices_table(title, summary))
    further = further_columns(summary)
    if further:
        output().print(table_of("further figures", summary, further))
    spread = ", ".join(
        heading.partition("\n")[0] for heading, figure, _ in (*COLUMNS, *further) if figure in SPREAD_OUT
    )
    output().print(
        f"where they differ within a tier, {spread}: the median, and the p10 and p90 of its clients; else: the mean",
        style="dim",
    )
    if preset is not None:
        for source in preset.sources:
            output().print(f"source: {source}")
        output().print(f"illustrative, without a source: {preset.illustrative}")


COLUMNS: tuple[Column, ...] = (
    ("keep", "keep_ratio", 1.0), ("speed\nGFLOP/s", "flops_per_s", 1e9), ("down\nMB/s", "down_bytes_per_s", 1e6),
    ("up\nMB/s", "up_bytes_per_s", 1e6), ("memory\nGB", "memory_bytes", 1e9), ("latency\nms", "latency_s", 1e-3),
    ("training\nW", "train_watts", 1.0), ("radio\nuJ/B", "radio_j_per_byte", 1e-6), ("battery\nkJ", "battery_j", 1e3),
    ("online", "availability", 0.01), ("drops out", "failure_rate", 0.01),
)  # fmt: skip
FURTHER: tuple[Column, ...] = (
    ("step overhead\nms", "step_overhead_s", 1e-3), ("memory bandwidth\nGB/s", "memory_bytes_per_s", 1e9),
    ("data cap\nMB", "data_cap_bytes", 1e6), ("speed varies\nby", "compute_variation", 0.01),
    ("links vary\nby", "link_variation", 0.01), ("links drift\nby", "link_drift", 0.01),
    ("waiting\nW", "idle_watts", 1.0), ("charging\nW", "charge_watts", 1.0),
    ("online swings\nby", "availability_swing", 0.01),
)  # fmt: skip
"""Shown only where a tier differs from the default."""
DEFAULTS = {field.name: field.default for field in fields(DeviceProfile)}
PERCENT = 0.01


def devices_table(title: str, summary: Summary) -> Table:
    """Return the tiers of a population as a table."""
    counts = [(f"{tier['clients']:,}", f"{tier['share']:.2%}") for tier in summary]
    return table_of(title, summary, COLUMNS, ("clients", "share"), counts)


def further_columns(summary: Summary) -> list[Column]:
    """Return the columns of further figures in which any tier differs from the default."""
    return [column for column in FURTHER if any(_differs(tier[column[1]], column[1]) for tier in summary)]


def _differs(value: float | Sequence[float | None], figure: str) -> bool:
    values = value if isinstance(value, Sequence) else [value]
    return any((inf if each is None else each) != DEFAULTS[figure] for each in values)


def table_of(
    title: str,
    summary: Summary,
    columns: Sequence[Column],
    more: Sequence[str] = (),
    cells: Sequence[Sequence[str]] | None = None,
) -> Table:
    """Return a table with a row per tier.

    Args:
        title: Title above the table.
        summary: The figures of each tier.
        columns: The figures to show.
        more: Headings of further columns before them.
        cells: Contents of these further columns, for each tier.
    """
    table = Table(title=Text(title, style="italic"))
    for heading in ("tier", *more, *(column[0] for column in columns)):
        table.add_column(heading, justify="left" if heading == "tier" else "right")
    for tier, first in zip(summary, cells or [()] * len(summary), strict=True):
        table.add_row(tier["tier"], *first, *(_cell(tier[figure], unit) for _, figure, unit in columns))
    return table


def _cell(value: float | Sequence[float | None] | None, unit: float) -> str:
    values = list(value) if isinstance(value, Sequence) else [value]
    texts = ["any" if each is None else f"{each / unit:.3g}" + " %" * (unit == PERCENT) for each in values]
    return texts[0] if len(set(texts)) == 1 else f"{texts[1]}\n{texts[0]} - {texts[2]}"
