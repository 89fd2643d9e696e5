"""Settings of the population: how many clients, on which devices."""

import math
from collections import Counter
from typing import Annotated, Self

from pydantic import Field, model_validator

from raysim.config.settings import Count, NotNegative, PathText, Positive, Probability, Settings, Share, Spread


class ProfileSettings(Settings):
    """One kind of device. The figures drive the simulated clock, budgets and costs only."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """Name of the tier: 1 to 64 letters, digits, `-` and `_`."""
    keep_ratio: Share = 1.0
    """Largest share of the channels of every prunable layer that a client trains, in (0, 1]; at least one is kept."""
    flops_per_s: Positive
    """Training speed in floating-point operations per second, above 0."""
    down_bytes_per_s: Positive
    """Download bandwidth in bytes per second, above 0."""
    up_bytes_per_s: Positive
    """Upload bandwidth in bytes per second, above 0."""
    latency_s: NotNegative = 0.0
    """Seconds before each transfer starts, at least 0."""
    step_overhead_s: NotNegative = 0.0
    """Seconds added to every optimizer step, at least 0."""
    memory_bytes_per_s: Positive | None = None
    """Memory bandwidth for saved activations, in bytes per second, above 0; null: not counted."""
    compute_variation: Spread = 0.0
    """Standard deviation of the training speed from round to round, as a share of the mean, in [0, 10]."""
    link_variation: Spread = 0.0
    """Standard deviation of each bandwidth from round to round, as a share of the mean, in [0, 10]."""
    link_drift: Spread = 0.0
    """Standard deviation of the slow drift of both bandwidths, as a share of the mean, in [0, 10]; the server
    measures it and solves budgets again."""
    memory_bytes: Positive | None = None
    """Memory that local training may use, in bytes, above 0; null: no limit. Read by `budget.rule: solved`."""
    data_cap_bytes: Positive | None = None
    """Bytes that a client may transfer in a round, up and down together, above 0; null: no limit. Read by
    `budget.rule: solved`."""
    train_watts: NotNegative = 0.0
    """Power in training, in watts, at least 0."""
    idle_watts: NotNegative = 0.0
    """Power while the client waits for the end of the round, in watts, at least 0."""
    radio_j_per_byte: NotNegative = 0.0
    """Energy of a transferred byte, in joules, at least 0."""
    battery_j: Positive | None = None
    """Energy of a full battery, in joules, above 0; null: on mains."""
    charge_watts: NotNegative = 0.0
    """Power that charges the battery while the client does not take part, in watts, at least 0."""
    availability: Share = 1.0
    """Mean share of the time in which the client is online, in (0, 1]."""
    availability_swing: Probability = 0.0
    """Amplitude of the daily sine around that mean, in [0, 1]."""
    failure_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that the client drops out of a round, in [0, 1)."""

    @model_validator(mode="after")
    def _check_battery(self) -> Self:
        if self.charge_watts and self.battery_j is None:
            raise ValueError(f"charge_watts={self.charge_watts:g} has no effect without battery_j")
        return self


class TierSettings(ProfileSettings):
    """A share of the clients with one kind of device."""

    share: Share
    """Share of the clients, in (0, 1]; the shares of all tiers add up to 1."""
    compute_spread: Spread = 0.0
    """Standard deviation of the training speed between the tier's clients, as a share of the mean, in [0, 10]."""
    link_spread: Spread = 0.0
    """Standard deviation of the bandwidths between the tier's clients, as a share of the mean, in [0, 10]."""
    memory_spread: Spread = 0.0
    """Standard deviation of the memory between the tier's clients, as a share of the mean, in [0, 10]."""

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        if self.memory_spread and self.memory_bytes is None:
            raise ValueError(f"memory_spread={self.memory_spread:g} has no effect without memory_bytes")
        return self


class DeviceSettings(Settings):
    """Devices from exactly one source: a preset, a list, a file or public traces."""

    preset: str | None = None
    """`phones-2020`, `heterofl-a-e`, `fedrolex-real`, `ca-hfp-rank0` to `ca-hfp-rank3`, `ca-hfp-ranks` or `uniform`;
    `raysim devices NAME` shows it."""
    profiles: Annotated[list[ProfileSettings], Field(min_length=1)] | None = None
    """One profile per device: in order for as many clients, else drawn from the seed."""
    path: PathText | None = None
    """`.csv` or `.parquet` file with a row per device and columns named as in a profile; assigned like `profiles`."""
    fedscale: PathText | None = None
    """FedScale's device capacity file: milliseconds of inference and kbit/s per device."""
    fedscale_flops: Positive | None = None
    """FLOPs of the inference that FedScale timed, above 0; default 6e+8."""
    availability: PathText | None = None
    """FedScale's availability file: when each device is online; it may accompany any of the others."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        sources = {name: getattr(self, name) for name in ("preset", "profiles", "path", "fedscale")}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"exactly one of {', '.join(sources)} must be given, found {found}")
        if self.fedscale_flops is not None and self.fedscale is None:
            raise ValueError(f"fedscale_flops={self.fedscale_flops:g} has no effect without fedscale")
        return self


class PopulationSettings(Settings):
    """How many clients, on which devices: `tiers` or `devices`."""

    clients: Count
    """Number of registered clients, at least 1."""
    tiers: Annotated[list[TierSettings], Field(min_length=1, max_length=12)] | None = None
    """Device tiers, 1 to 12, since curves of more could not be distinguished."""
    devices: DeviceSettings | None = None
    """Devices from a preset, a list, a file or traces."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tiers is None) == (self.devices is None):
            found = "both" if self.tiers else "neither"
            raise ValueError(f"exactly one of tiers and devices must be given, found {found}")
        if self.tiers is not None:
            check_tiers(self.tiers)
        return self


def check_tiers(tiers: list[TierSettings]) -> None:
    """Raise ValueError if shares do not add up to 1 or a name is given twice."""
    total = math.fsum(tier.share for tier in tiers)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the tiers' shares add up to {total:g}, they must add up to 1")
    twice = [name for name, times in Counter(tier.name for tier in tiers).items() if times > 1]
    if twice:
        raise ValueError(f"tier name {twice[0]!r} is given twice, names must differ")
