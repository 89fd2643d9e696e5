"""Devices to look at: a preset or a file, dealt to clients and described."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raysim import device_figure, device_sources, device_summary
from raysim import devices as dealing
from raysim.config_devices import DeviceSettings
from raysim.device_presets import PRESETS, Preset, preset
from raysim.errors import SettingError
from raysim.types import Devices, Tier

CLIENTS_OF_PRESET = 10_000


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
    """Return the page of a preset or a file.

    Args:
        source: Name of a preset, a `.csv` or `.parquet` file, or FedScale's capacity file.
        clients: To how many clients devices are dealt; none = 10,000 of a preset, as many as a file has devices.
        seed: Seed of what is drawn.

    Raises:
        SettingError: If there is no such preset or file, or it holds what is not allowed.
    """
    is_table = Path(source).suffix in (".csv", ".parquet")
    if source in PRESETS or not (is_table or Path(source).is_file()):
        chosen = preset(source)
        return Page(source, chosen, dealing.of_tiers(chosen.tiers, clients or CLIENTS_OF_PRESET, seed))
    given = DeviceSettings(path=source) if is_table else DeviceSettings(fedscale=source)
    found = device_sources.given(given)
    return Page(source, None, dealing.dealt(found, clients or len(found), seed))


def settings_of(tier: Tier) -> dict[str, Any]:
    """Return a tier as its settings; what has no limit is left out."""
    own = {name: value for name, value in asdict(tier).items() if name != "device"}
    figures = {name: value for name, value in asdict(tier.device).items() if value != float("inf")}
    return {**figures, **own}
