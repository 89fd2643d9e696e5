"""Where devices come from: tiers in the settings, presets, lists, files, public traces."""

from raysim import devices
from raysim.config_devices import PopulationSettings, TierSettings
from raysim.types import DeviceProfile, Devices, Tier


def of_settings(settings: PopulationSettings, seed: int) -> Devices:
    """Give every client its device.

    Args:
        settings: How many clients, on which devices.
        seed: Seed of the split.
    """
    assert settings.tiers is not None
    return devices.of_tiers([tier_of(tier) for tier in settings.tiers], settings.clients, seed)


def tier_of(settings: TierSettings) -> Tier:
    """Return a tier as the record that the engine knows."""
    of_tier = {"share", "keep_ratio", "compute_spread", "link_spread", "memory_spread"}
    figures = settings.model_dump(exclude=of_tier, exclude_none=True)
    own = settings.model_dump(include=of_tier)
    return Tier(DeviceProfile(**figures), **own)
