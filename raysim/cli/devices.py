"""Devices to look at: a preset or a file, dealt to clients and described."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from raysim.config import loader
from raysim.config.population import DeviceSettings, PopulationSettings
from raysim.core.errors import SettingError, nearest_first
from raysim.core.formatting import output
from raysim.population import figure as device_figure
from raysim.population import sampling, sources
from raysim.population import summary as device_summary
from raysim.population import tables as device_files
from raysim.population.presets import PRESETS, Preset, preset
from raysim.population.profiles import DeviceProfile, Devices, Tier
from raysim.population.summary import SPREAD_OUT

CLIENTS_OF_PRESET = 10_000
TRACES, SETTINGS = (".pkl", ".pickle", ".json"), (".yaml", ".yml")


@dataclass(frozen=True)
class Page:
    """Devices of clients, and what they are called.

    Attributes:
        source: Name of the preset or path of the file.
        preset: The preset, if it is one.
        devices: The clients' devices.
    """

    source: str
    preset: Preset | None
    devices: Devices

    @property
    def title(self) -> str:
        """What is shown."""
        return f"{self.source}: {len(self.devices):,} clients"

    @cached_property
    def summary(self) -> list[dict[str, Any]]:
        """The tiers, described."""
        return device_summary.of_devices(self.devices)

    def as_json(self) -> dict[str, Any]:
        """Return what a program reads; a preset comes with the `population.tiers` it stands for."""
        page = {"source": self.source, "clients": len(self.devices), "tiers": self.summary}
        if self.preset is None:
            return page
        tiers = [settings_of(tier) for tier in self.preset.tiers]
        return page | {
            "sources": self.preset.sources, "illustrative": self.preset.illustrative, "population": {"tiers": tiers},
        }  # fmt: skip

    def draw(self, path: Path) -> None:
        """Draw the picture.

        Raises:
            SettingError: If the file cannot be written.
        """
        if path.is_dir():
            raise SettingError(f"--plot={str(path)!r} cannot be written: it is a folder; allowed: a file")
        try:
            device_figure.draw(path, self.devices, self.title)
        except OSError as error:
            raise SettingError(f"--plot={str(path)!r} cannot be written: {error.strerror}") from None


def of(source: str, clients: int | None, seed: int) -> Page:
    """Return the page of a preset or a file; the end of a file's name tells what it holds.

    Args:
        source: Name of a preset, or a file: a table, FedScale's capacities, or settings with a population.
        clients: To how many clients devices are dealt; none = as many as a file says or has, 10,000 of a preset.
        seed: Seed of what is drawn.

    Raises:
        SettingError: If there is no such preset or file, or it holds what is not allowed.
    """
    suffix = Path(source).suffix.lower()
    if source in PRESETS:
        chosen = preset(source)
        return Page(source, chosen, sampling.of_tiers(chosen.tiers, clients or CLIENTS_OF_PRESET, seed))
    if suffix in SETTINGS:
        return Page(source, None, sources.of_settings(_population(source, clients), seed))
    if suffix in device_files.SUFFIXES:
        found = sources.given(DeviceSettings(path=source))
    elif suffix in TRACES or (not suffix and Path(source).is_file()):
        found = sources.given(DeviceSettings(fedscale=source))
    else:
        raise SettingError(
            f"PRESET|FILE={source!r} is {_what_is(Path(source))}; allowed: a preset "
            f"({', '.join(nearest_first(source, PRESETS))}), a table (.csv, .parquet), FedScale's capacities "
            "(.pkl, .pickle, .json, or without an ending), or settings with a population section (.yaml, .yml)"
        )
    return Page(source, None, sampling.for_clients(found, clients or len(found), seed))


def _what_is(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a file of another kind" if path.is_file() else "no preset, and no file"


def _population(source: str, clients: int | None) -> PopulationSettings:
    section = loader.population_section(Path(source), "FILE")
    given = {} if clients is None else {"clients": clients}
    population = loader.validated({"clients": CLIENTS_OF_PRESET} | section | given, PopulationSettings)
    sources.check(population)
    return population


def settings_of(tier: Tier) -> dict[str, Any]:
    """Return a tier as its settings; what has no limit is left out."""
    own = {name: value for name, value in asdict(tier).items() if name != "device"}
    figures = {name: value for name, value in asdict(tier.device).items() if value != float("inf")}
    return {**figures, **own}


Summary = Sequence[Mapping[str, Any]]
Column = tuple[str, str, float]


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


COLUMNS = (
    ("keep", "keep_ratio", 1.0), ("speed\nGFLOP/s", "flops_per_s", 1e9), ("down\nMB/s", "down_bytes_per_s", 1e6),
    ("up\nMB/s", "up_bytes_per_s", 1e6), ("memory\nGB", "memory_bytes", 1e9), ("latency\nms", "latency_s", 1e-3),
    ("training\nW", "train_watts", 1.0), ("radio\nuJ/B", "radio_j_per_byte", 1e-6), ("battery\nkJ", "battery_j", 1e3),
    ("online", "availability", 0.01), ("drops out", "failure_rate", 0.01),
)  # fmt: skip
"""Heading, figure, and its unit."""
FURTHER = (
    ("step overhead\nms", "step_overhead_s", 1e-3), ("memory bandwidth\nGB/s", "memory_bytes_per_s", 1e9),
    ("data cap\nMB", "data_cap_bytes", 1e6), ("speed varies\nby", "compute_variation", 0.01),
    ("links vary\nby", "link_variation", 0.01), ("links drift\nby", "link_drift", 0.01),
    ("waiting\nW", "idle_watts", 1.0), ("charging\nW", "charge_watts", 1.0),
    ("online swings\nby", "availability_swing", 0.01),
)  # fmt: skip
"""Shown where a tier has another than the default."""
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
    title: str, summary: Summary, columns: Sequence[Column], more: Sequence[str] = (),
    cells: Sequence[Sequence[str]] | None = None,
) -> Table:  # fmt: skip
    """Return a table with a row per tier.

    Args:
        title: What stands above it.
        summary: The tiers, described.
        columns: Figures to tell.
        more: Headings of further columns before them.
        cells: What stands in these, for each tier.
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
