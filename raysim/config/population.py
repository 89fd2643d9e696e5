"""Settings of devices: who has which, what they can afford, who is asked, when a round ends."""

import math
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raysim.config.data import Count, NotNegative, Positive, Probability, Settings, Share


class ProfileSettings(Settings):
    """One kind of device. The figures drive the simulated clock, budgets and costs only."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """Name of the tier: letters, digits, `-` and `_`."""
    keep_ratio: Share = 1.0
    """Share of the channels of every prunable layer a client trains at most, in (0, 1]; at least one stays."""
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
    """Memory bandwidth that saved activations pass through, bytes per second; null = not counted."""
    compute_variation: NotNegative = 0.0
    """Standard deviation of the training speed from round to round, as a share of the mean, at least 0."""
    link_variation: NotNegative = 0.0
    """Standard deviation of each bandwidth from round to round, as a share of the mean, at least 0."""
    link_drift: NotNegative = 0.0
    """Standard deviation of the slow drift of both bandwidths, as a share of the mean, at least 0; the server
    measures it, and solves budgets anew."""
    memory_bytes: Positive | None = None
    """Memory that local training may use, bytes, above 0; null = any. Read by `budget.rule: solved`."""
    data_cap_bytes: Positive | None = None
    """Bytes a client may transfer in a round, up and down together, above 0; null = any. Read by
    `budget.rule: solved`."""
    train_watts: NotNegative = 0.0
    """Power while it trains, watts, at least 0."""
    idle_watts: NotNegative = 0.0
    """Power while it waits for the round to end, watts, at least 0."""
    radio_j_per_byte: NotNegative = 0.0
    """Energy of a transferred byte, joules, at least 0."""
    battery_j: Positive | None = None
    """Energy in a full battery, joules, above 0; null = on mains."""
    charge_watts: NotNegative = 0.0
    """Power that fills the battery while the client does not take part, watts, at least 0."""
    availability: Share = 1.0
    """Mean share of the time at which it can be reached, in (0, 1]."""
    availability_swing: Probability = 0.0
    """Amplitude of the daily sine around that mean, in [0, 1]."""
    failure_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that it drops out of a round it takes part in, in [0, 1)."""

    @model_validator(mode="after")
    def _check_battery(self) -> Self:
        if self.charge_watts and self.battery_j is None:
            raise ValueError(f"charge_watts={self.charge_watts:g} has no effect without battery_j")
        return self


class TierSettings(ProfileSettings):
    """A share of the clients with one kind of device."""

    share: Share
    """Share of the clients, in (0, 1]; the shares of all tiers add up to 1."""
    compute_spread: NotNegative = 0.0
    """Standard deviation of the training speed between the tier's clients, as a share of the mean, at least 0."""
    link_spread: NotNegative = 0.0
    """Standard deviation of the bandwidths between the tier's clients, as a share of the mean, at least 0."""
    memory_spread: NotNegative = 0.0
    """Standard deviation of the memory between the tier's clients, as a share of the mean, at least 0."""

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        if self.memory_spread and self.memory_bytes is None:
            raise ValueError(f"memory_spread={self.memory_spread:g} has no effect without memory_bytes")
        return self


class DeviceSettings(Settings):
    """Devices from a preset, a list, a file or public traces: exactly one of them."""

    preset: str | None = None
    """`phones-2020`, `heterofl-a-e`, `fedrolex-real`, `ca-hfp-rank0` to `ca-hfp-rank3`, `ca-hfp-ranks` or `uniform`;
    `raysim devices NAME` shows one."""
    profiles: Annotated[list[ProfileSettings], Field(min_length=1)] | None = None
    """One profile per device: dealt in order to as many clients, else drawn from the seed."""
    path: str | None = None
    """`.csv` or `.parquet` with a row per device and columns named as in a profile; dealt as `profiles` are."""
    fedscale: str | None = None
    """FedScale's device capacity file: milliseconds of inference and kbit/s per device."""
    fedscale_flops: Positive | None = None
    """FLOPs of the inference that FedScale's milliseconds are of, above 0; default 6e+8."""
    availability: str | None = None
    """FedScale's availability file: when each device can be reached; goes with any of the others."""

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
    """Device tiers, 1 to 12; more would not be readable as curves."""
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


class BudgetSettings(Settings):
    """How much of the model a client trains. Methods that train the whole model leave budgets aside."""

    rule: Literal["tier", "solved"] = "tier"
    """`tier` (the device's `keep_ratio`) or `solved` (the widest submodel, up to `keep_ratio`, that meets the
    deadline and fits the device's memory and data cap)."""
    deadline_s: Positive | None = None
    """Seconds in which download, training and upload have to be predicted to end, above 0; null = those of
    `clock.deadline_s`, else any. For `rule: solved`."""
    steps: Count | None = None
    """Rungs of the ladder of keep ratios, at least 1; default 32. For `rule: solved`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("deadline_s", "steps"):
            if getattr(self, name) is not None and self.rule != "solved":
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with rule='tier'; it belongs to 'solved'"
                )
        return self


class SelectionSettings(Settings):
    """Who takes part in a round."""

    clients_per_round: Count
    """Clients whose updates a round is made of, at least 1."""
    rule: str = "uniform"
    """`uniform` (any registered client; who is offline does not answer), or among those that can be reached:
    `available` (uniform), `power-of-choice` (the highest last loss of some candidates), `oort` (utility of data and
    speed, with exploration), `round-robin` (longest not asked) or `by-examples` (in proportion to training rows); or
    `package.module:name`, a function of your own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule, by name, for example `{candidates: 30}` of `power-of-choice`."""


class ClockSettings(Settings):
    """When a round ends in simulated time, and whose work counts."""

    mode: Literal["sync", "deadline", "over-selection", "async"] = "sync"
    """`sync` (wait for everybody), `deadline` (until `deadline_s`), `over-selection` (ask more, take the first) or
    `async` (FedBuff: aggregate whenever a buffer is full)."""
    deadline_s: Positive | None = None
    """Seconds after which a round ends, above 0. For `mode: deadline`."""
    accept_partial: bool | None = None
    """Whether late clients send the epochs they have done by then; default false. For `mode: deadline`."""
    over_selection: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Clients asked over clients taken, at least 1; default 1.3. For `mode: over-selection`."""
    buffer_size: Count | None = None
    """Updates of one aggregation, at least 1; default `selection.clients_per_round`. For `mode: async`."""
    concurrency: Count | None = None
    """Clients training at a time, at least 1; default `selection.clients_per_round`. For `mode: async`."""
    staleness_exponent: NotNegative | None = None
    """Weight of an update that is s versions old: (1 + s) to minus this, at least 0; default 0.5. For
    `mode: async`."""
    server_s: NotNegative = 0.0
    """Seconds the server takes for a round, at least 0."""
    empty_round_s: Positive | None = None
    """Seconds that pass where nobody takes part, above 0; default 60. With `mode: deadline` it is the deadline."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        readers = {
            "deadline": ("deadline_s", "accept_partial"),
            "over-selection": ("over_selection",),
            "async": ("buffer_size", "concurrency", "staleness_exponent"),
        }
        for mode, names in readers.items():
            for name in names:
                if getattr(self, name) is not None and self.mode != mode:
                    raise ValueError(
                        f"{name}={getattr(self, name)} has no effect with mode={self.mode!r}; it belongs to {mode!r}"
                    )
        if self.mode == "deadline" and self.empty_round_s is not None:
            raise ValueError(
                f"empty_round_s={self.empty_round_s:g} has no effect with mode='deadline', where deadline_s passes"
            )
        if self.mode == "deadline" and self.deadline_s is None:
            raise ValueError("deadline_s is missing; mode='deadline' needs it, above 0")
        return self


class CostSettings(Settings):
    """What energy and machines cost, to tell money and CO2 of a run; null = not told."""

    price_per_kwh: NotNegative | None = None
    """Price of a kilowatt-hour, in any currency, at least 0."""
    carbon_g_per_kwh: NotNegative | None = None
    """Grams of CO2 per kilowatt-hour, at least 0."""
    cluster_watts: NotNegative | None = None
    """Power of the machines that run the simulation, watts, at least 0; counted over wall time."""
    cluster_price_per_hour: NotNegative | None = None
    """Price of an hour of those machines, in the same currency, at least 0."""


class StopSettings(Settings):
    """What ends a run before its last round; null = nothing."""

    accuracy: Share | None = None
    """Global test accuracy to reach, in (0, 1]."""
    simulated_s: Positive | None = None
    """Simulated seconds to spend, above 0."""
    bytes: Positive | None = None
    """Bytes to move, up and down, above 0."""
    energy_j: Positive | None = None
    """Joules the devices spend, above 0."""
