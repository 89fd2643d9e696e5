"""Records of device profiles and tiers, and the devices of a population as columns."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Figures of a device; all belong to the simulated clock, not to this machine.

    Attributes:
        name: Name of its tier.
        flops_per_s: Training speed.
        down_bytes_per_s: Download bandwidth.
        up_bytes_per_s: Upload bandwidth.
        latency_s: Seconds before each transfer.
        step_overhead_s: Seconds added to every optimizer step.
        memory_bytes_per_s: Memory bandwidth for saved activations; infinite: not counted.
        compute_variation: Standard deviation of the seconds of training from round to round, as a share of the mean.
        link_variation: The same for the seconds of each transfer.
        link_drift: The same for the slow drift of both bandwidths, which the server measures.
        memory_bytes: Memory that local training may use.
        data_cap_bytes: Bytes that it may transfer in one round, in both directions together.
        train_watts: Power in training.
        idle_watts: Power while it waits for the end of the round.
        radio_j_per_byte: Energy of a transferred byte.
        battery_j: Energy of a full battery; infinite: on mains.
        charge_watts: Power that charges the battery while it does not take part.
        availability: Mean share of the time in which it is online, in [0, 1].
        availability_swing: Amplitude of the daily sine around that mean, in [0, 1].
        failure_rate: Probability that it drops out of a round.
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
"""Names of the figures of a device profile."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A share of the population with one kind of device.

    `keep_ratio` is the largest share of channels that its clients train; the spreads are standard deviations between
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
    """When devices are online: intervals `[start, end)` in seconds, repeated after each trace's period.

    Attributes:
        offsets: Index of the first interval of each trace, and the number of intervals, `(traces + 1,)`.
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
    """The clients' devices: a table of distinct devices, and the index of each client's device in it.

    Attributes:
        figures: The figures of the profiles by name (`FIGURES`), `(devices,)` each.
        keep_ratios: Largest share of channels that a device trains, `(devices,)`.
        tiers: Names of the tiers.
        tier_of_device: The tier of each device, `(devices,)`.
        device_of: The device of each client, `(clients,)`.
        online: When devices are online, if traces decide.
        trace_of: The trace of each client, `(clients,)`. None: the trace of its device.
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
        """Return a figure of each client's device, `(clients,)`."""
        return self.figures[name][self.device_of]

    @property
    def keep_ratio(self) -> NDArray[np.float64]:
        """Largest share of channels that each client trains, `(clients,)`."""
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
