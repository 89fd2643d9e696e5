"""Where devices come from: tiers in the settings, presets, lists, files, public traces."""

from raysim.config.population import DeviceSettings, PopulationSettings, ProfileSettings, TierSettings
from raysim.core.errors import SettingError
from raysim.population import fedscale, sampling
from raysim.population import tables as device_files
from raysim.population.presets import preset
from raysim.population.profiles import DeviceProfile, Devices, Tier

MAX_TIERS = 12
"""More would not be readable as curves."""


def check(settings: PopulationSettings) -> None:
    """Resolve names without reading anything.

    Raises:
        SettingError: If the preset is unknown.
    """
    if settings.devices is not None and settings.devices.preset is not None:
        preset(settings.devices.preset)


def of_settings(settings: PopulationSettings, seed: int) -> Devices:
    """Give every client its device.

    Args:
        settings: How many clients, on which devices.
        seed: Seed of the split.

    Raises:
        SettingError: If a name is unknown, or a file cannot be read or holds what is not allowed.
    """
    if settings.devices is None:
        return sampling.of_tiers([tier_of(tier) for tier in settings.tiers or ()], settings.clients, seed)
    source = settings.devices
    if source.preset is not None:
        owned = sampling.of_tiers(preset(source.preset).tiers, settings.clients, seed)
    else:
        owned = sampling.dealt(given(source), settings.clients, seed)
    return owned if source.availability is None else fedscale.with_availability(owned, source.availability, seed)


def given(source: DeviceSettings) -> Devices:
    """Return the devices of a list, a file or a trace, one client on each.

    Raises:
        SettingError: If a file cannot be read or holds what is not allowed.
    """
    if source.path is not None:
        found, setting = device_files.read(source.path), f"population.devices.path={source.path!r}"
    elif source.fedscale is not None:
        return fedscale.read_capacity(source.fedscale, source.fedscale_flops)
    else:
        profiles, setting = source.profiles or [], "population.devices.profiles"
        found = sampling.listed([profile_of(profile) for profile in profiles], [each.keep_ratio for each in profiles])
    if len(found.tiers) > MAX_TIERS:
        raise SettingError(
            f"{setting}: {len(found.tiers)} different names, which become tiers; allowed: at most {MAX_TIERS}"
        )
    return found


OF_TIER = {"share", "keep_ratio", "compute_spread", "link_spread", "memory_spread"}


def profile_of(settings: ProfileSettings) -> DeviceProfile:
    """Return a profile as the record that the engine knows."""
    return DeviceProfile(**settings.model_dump(exclude=OF_TIER, exclude_none=True))


def tier_of(settings: TierSettings) -> Tier:
    """Return a tier as the record that the engine knows."""
    return Tier(profile_of(settings), **settings.model_dump(include=OF_TIER))
