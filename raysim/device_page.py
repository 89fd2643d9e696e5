"""Devices to look at: a preset or a file, dealt to clients and described."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raysim import config_file, device_figure, device_files, device_sources, device_summary
from raysim import devices as dealing
from raysim.config_devices import DeviceSettings, PopulationSettings
from raysim.device_presets import PRESETS, Preset, preset
from raysim.errors import SettingError, nearest_first
from raysim.types import Devices, Tier

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
        return Page(source, chosen, dealing.of_tiers(chosen.tiers, clients or CLIENTS_OF_PRESET, seed))
    if suffix in SETTINGS:
        return Page(source, None, device_sources.of_settings(_population(source, clients), seed))
    if suffix in device_files.SUFFIXES:
        found = device_sources.given(DeviceSettings(path=source))
    elif suffix in TRACES or (not suffix and Path(source).is_file()):
        found = device_sources.given(DeviceSettings(fedscale=source))
    else:
        raise SettingError(
            f"PRESET|FILE={source!r} is {_what_is(Path(source))}; allowed: a preset "
            f"({', '.join(nearest_first(source, PRESETS))}), a table (.csv, .parquet), FedScale's capacities "
            "(.pkl, .pickle, .json, or without an ending), or settings with a population section (.yaml, .yml)"
        )
    return Page(source, None, dealing.dealt(found, clients or len(found), seed))


def _what_is(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a file of another kind" if path.is_file() else "no preset, and no file"


def _population(source: str, clients: int | None) -> PopulationSettings:
    section = config_file.population_section(Path(source), "FILE")
    given = {} if clients is None else {"clients": clients}
    population = config_file.validated({"clients": CLIENTS_OF_PRESET} | section | given, PopulationSettings)
    device_sources.check(population)
    return population


def settings_of(tier: Tier) -> dict[str, Any]:
    """Return a tier as its settings; what has no limit is left out."""
    own = {name: value for name, value in asdict(tier).items() if name != "device"}
    figures = {name: value for name, value in asdict(tier.device).items() if value != float("inf")}
    return {**figures, **own}
