"""Device profiles, tiers, and the devices of a population as columns."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What a device can do; every constant belongs to the simulated clock, not to this machine.

    Attributes:
        name: The tier it belongs to.
        flops_per_s: Training speed.
        down_bytes_per_s: Download bandwidth.
        up_bytes_per_s: Upload bandwidth.
        latency_s: Before each transfer.
        step_overhead_s: Added to every optimizer step.
        memory_bytes_per_s: Bandwidth that saved activations pass through; infinite = not counted.
        compute_variation: Standard deviation of the speed from round to round, as a share of the mean.
        link_variation: The same of each bandwidth.
        link_drift: Standard deviation of the slow drift of both bandwidths, which the server measures.
        memory_bytes: Memory that local training may use.
        data_cap_bytes: Bytes it may transfer in one round, both ways together.
        train_watts: Power while it trains.
        idle_watts: Power while it waits for the round to end.
        radio_j_per_byte: Energy of a transferred byte.
        battery_j: Energy in a full battery; infinite = on mains.
        charge_watts: Power that fills the battery while it does not take part.
        availability: Mean share of the time at which it can be reached, in [0, 1].
        availability_swing: Amplitude of the daily sine around that mean, in [0, 1].
        failure_rate: Probability that it drops out of a round it takes part in.
    """

    name: str
    flops_per_s: float
    down_bytes_per_s: float
    up_bytes_per_s: float
    latency_s: float = 0.0
    step_overhead_s: float = 0.0
    memory_bytes_per_s: float = inf
    compute_variation: float = 0.0
    link_variation: float = 0.0
    link_drift: float = 0.0
    memory_bytes: float = inf
    data_cap_bytes: float = inf
    train_watts: float = 0.0
    idle_watts: float = 0.0
    radio_j_per_byte: float = 0.0
    battery_j: float = inf
    charge_watts: float = 0.0
    availability: float = 1.0
    availability_swing: float = 0.0
    failure_rate: float = 0.0


FIGURES = tuple(field.name for field in fields(DeviceProfile) if field.name != "name")
"""The numbers of a device profile, by name."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A share of the population with one kind of device.

    `keep_ratio` is the share of channels its clients train at most; the spreads are standard deviations between
    the tier's clients, as shares of the mean.
    """

    device: DeviceProfile
    share: float
    keep_ratio: float
    compute_spread: float = 0.0
    link_spread: float = 0.0
    memory_spread: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class OnlineIntervals:
    """When devices can be reached: intervals `[start, end)` in seconds, repeated after each trace's period.

    Attributes:
        offsets: Where the intervals of a trace begin, `(traces + 1,)`.
        starts: `(intervals,)`, at least 0, ascending within a trace; intervals do not touch.
        ends: `(intervals,)`, at most the trace's period.
        periods: Seconds after which a trace's intervals repeat, `(traces,)`.
    """

    offsets: NDArray[np.int64]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    periods: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Devices:
    """The clients' devices: a table of distinct ones, and which of them each client has.

    Attributes:
        figures: The numbers of the profiles by name (`FIGURES`), `(devices,)` each.
        keep_ratios: Share of channels a device trains at most, `(devices,)`.
        tiers: Names of the tiers.
        tier_of_device: The tier of each device, `(devices,)`.
        device_of: The device of each client, `(clients,)`.
        online: When devices can be reached, where traces tell.
        trace_of: The trace of each client, `(clients,)`; none = that of its device, in order.
    """

    figures: Mapping[str, NDArray[np.float64]]
    keep_ratios: NDArray[np.float64]
    tiers: tuple[str, ...]
    tier_of_device: NDArray[np.int64]
    device_of: NDArray[np.int64]
    online: OnlineIntervals | None = None
    trace_of: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.device_of)

    def of(self, clients: NDArray[np.int64]) -> "Devices":
        """Return the devices of some clients, in their order."""
        trace_of = None if self.trace_of is None else self.trace_of[clients]
        return replace(self, device_of=self.device_of[clients], trace_of=trace_of)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a number of the profiles, `(clients,)`."""
        return self.figures[name][self.device_of]

    @property
    def keep_ratio(self) -> NDArray[np.float64]:
        """Share of channels each client trains at most, `(clients,)`."""
        return self.keep_ratios[self.device_of]

    @property
    def tier_of(self) -> NDArray[np.int64]:
        """The tier of each client, `(clients,)`."""
        return self.tier_of_device[self.device_of]

    def profile(self, client: int) -> DeviceProfile:
        """Return the profile of one client's device."""
        device = self.device_of[client]
        figures = {name: float(column[device]) for name, column in self.figures.items()}
        return DeviceProfile(self.tiers[self.tier_of_device[device]], **figures)
