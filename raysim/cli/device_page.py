"""The devices that `raysim devices` shows: a preset or a file, assigned to clients and summarised."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raysim.config import loader
from raysim.config.population import DeviceSettings, PopulationSettings
from raysim.core.errors import SettingError, nearest_first
from raysim.population import figure, sampling, sources, summary, tables
from raysim.population.presets import PRESETS, Preset, preset
from raysim.population.profiles import Devices, Tier

CLIENTS_OF_PRESET = 10_000
TRACES, SETTINGS = (".pkl", ".pickle", ".json"), (".yaml", ".yml")


@dataclass(frozen=True)
class DevicePage:
    """The devices of a population, and where they come from.

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
        """The source and the number of clients."""
        return f"{self.source}: {len(self.devices):,} clients"

    @cached_property
    def summary(self) -> list[dict[str, Any]]:
        """The figures of each tier."""
        return summary.of_devices(self.devices)

    def as_json(self) -> dict[str, Any]:
        """Return the page for programs; a preset includes the `population.tiers` that it stands for."""
        page = {"source": self.source, "clients": len(self.devices), "tiers": self.summary}
        if self.preset is None:
            return page
        return page | {
            "sources": self.preset.sources,
            "illustrative": self.preset.illustrative,
            "population": {"tiers": [settings_of(tier) for tier in self.preset.tiers]},
        }

    def draw(self, path: Path) -> None:
        """Draw the devices into a picture.

        Raises:
            SettingError: If the file cannot be written.
        """
        if path.is_dir():
            raise SettingError(f"--plot={str(path)!r} cannot be written: it is a folder; allowed: a file")
        try:
            figure.draw(path, self.devices, self.title)
        except OSError as error:
            raise SettingError(f"--plot={str(path)!r} cannot be written: {error.strerror}") from None


def of(source: str, clients: int | None, seed: int) -> DevicePage:
    """Return the page of a preset or a file; the ending of a file's name decides what it holds.

    Args:
        source: Name of a preset, or a file: a table, FedScale's capacities, or settings with a population.
        clients: Number of clients that devices are assigned to; None: as many as a file states or has, 10,000 of a
            preset.
        seed: Seed of the random draws.

    Raises:
        SettingError: If there is no such preset or file, or it holds what is not allowed.
    """
    suffix = Path(source).suffix.lower()
    if source in PRESETS:
        chosen = preset(source)
        return DevicePage(source, chosen, sampling.of_tiers(chosen.tiers, clients or CLIENTS_OF_PRESET, seed))
    if suffix in SETTINGS:
        return DevicePage(source, None, sources.of_settings(_population(source, clients), seed))
    if suffix in tables.SUFFIXES:
        found = sources.given(DeviceSettings(path=source))
    elif suffix in TRACES or (not suffix and Path(source).is_file()):
        found = sources.given(DeviceSettings(fedscale=source))
    else:
        raise SettingError(
            f"PRESET|FILE={source!r} is {_kind_of(Path(source))}; allowed: a preset "
            f"({', '.join(nearest_first(source, PRESETS))}), a table (.csv, .parquet), FedScale's capacities "
            "(.pkl, .pickle, .json, or without an ending), or settings with a population section (.yaml, .yml)"
        )
    return DevicePage(source, None, sampling.for_clients(found, clients or len(found), seed))


def _kind_of(path: Path) -> str:
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
    """Return a tier as its settings, without those that are unlimited."""
    own = {name: value for name, value in asdict(tier).items() if name != "device"}
    figures = {name: value for name, value in asdict(tier.device).items() if value != float("inf")}
    return {**figures, **own}
