"""Build the clients' devices from the settings: tiers, presets, lists, files or public traces."""

from raysim.config.population import DeviceSettings, PopulationSettings, ProfileSettings, TierSettings
from raysim.core.errors import SettingError
from raysim.population import fedscale, sampling, tables
from raysim.population.presets import preset
from raysim.population.profiles import DeviceProfile, Devices, Tier

MAX_TIERS = 12
"""More could not be distinguished in figures."""


def check(settings: PopulationSettings) -> None:
    """Check names without reading files.

    Raises:
        SettingError: If the preset is unknown.
    """
    if settings.devices is not None and settings.devices.preset is not None:
        preset(settings.devices.preset)


def of_settings(settings: PopulationSettings, seed: int) -> Devices:
    """Return the device of every client.

    Args:
        settings: The section `population`.
        seed: Seed of the split.

    Raises:
        SettingError: If a name is unknown, a file cannot be read, or its content is not allowed.
    """
    if settings.devices is None:
        return sampling.of_tiers([tier_of(tier) for tier in settings.tiers or ()], settings.clients, seed)
    source = settings.devices
    if source.preset is not None:
        owned = sampling.of_tiers(preset(source.preset).tiers, settings.clients, seed)
    else:
        owned = sampling.for_clients(given(source), settings.clients, seed)
    return owned if source.availability is None else fedscale.with_availability(owned, source.availability, seed)


def given(source: DeviceSettings) -> Devices:
    """Return the devices of a list, a file or a trace, one client on each.

    Raises:
        SettingError: If a file cannot be read or its content is not allowed.
    """
    if source.path is not None:
        found, setting = tables.read(source.path), f"population.devices.path={source.path!r}"
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


TIER_FIELDS = {"share", "keep_ratio", "compute_spread", "link_spread", "memory_spread"}


def profile_of(settings: ProfileSettings) -> DeviceProfile:
    """Return the record of a profile's settings."""
    return DeviceProfile(**settings.model_dump(exclude=TIER_FIELDS, exclude_none=True))


def tier_of(settings: TierSettings) -> Tier:
    """Return the record of a tier's settings."""
    return Tier(profile_of(settings), **settings.model_dump(include=TIER_FIELDS))
