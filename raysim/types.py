"""The nouns: frozen records that the other modules pass to each other."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raysim import files, places
from raysim.errors import SettingError
from raysim.messages import Remark
from raysim.place import Place

if TYPE_CHECKING:
    import torch

    from raysim.work import Work

Params = dict[str, "torch.Tensor"]
"""Parameters and buffers of a model by state-dict key."""

Columns = dict[str, NDArray[Any]]
"""A table as equally long one-dimensional arrays by column name."""


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


class ClientRows(Protocol):
    """Which rows of the data each client owns: stored for all, or drawn when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, client: int) -> NDArray[np.int64]: ...

    def several(self, clients: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of some clients, one after another, and how many each has, `(those,)`."""
        ...

    def counts_of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many rows some clients have, `(those,)`."""
        ...

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each client, `(clients,)`."""
        ...

    @property
    def identity(self) -> list[NDArray[np.int64]]:
        """Arrays that decide who owns which rows, for a digest."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RowSets:
    """Which rows of the data each client owns, as offsets `(clients + 1,)` into one array of row numbers."""

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> NDArray[np.int64]:
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    def several(self, clients: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of some clients, one after another, and how many each has, `(those,)`."""
        return np.concatenate([self[client] for client in clients.tolist()]), self.counts_of(clients)

    def counts_of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many rows some clients have, `(those,)`."""
        return self.offsets[clients + 1] - self.offsets[clients]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each client, `(clients,)`."""
        return np.diff(self.offsets)

    @property
    def identity(self) -> list[NDArray[np.int64]]:
        """Arrays that decide who owns which rows."""
        return [self.offsets, self.rows]


@dataclass(frozen=True, slots=True)
class Client:
    """One row of the population: who it is, its device, and how many training and held-out rows it owns.

    `keep_ratio` is the share of channels its device trains at most.
    """

    id: int
    device: DeviceProfile
    keep_ratio: float
    examples: int
    heldout: int


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """All clients as columns; nothing is built per registered client."""

    devices: Devices
    train: ClientRows
    heldout: ClientRows

    def __len__(self) -> int:
        return len(self.devices)

    def client(self, id: int) -> Client:
        """Return the record of one client."""
        devices = self.devices
        return Client(
            id, devices.profile(id), float(devices.keep_ratio[id]), len(self.train[id]), len(self.heldout[id])
        )


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """What a submodel keeps.

    Attributes:
        kept: Which units, `(num_units,)` booleans: the plan's channel groups one after another.
        elements: For hybrid masks, which entries of single tensors: by state-dict key, in the full model's
            coordinates, eight to a byte (`numpy.packbits`); tensors without an entry are whole.
    """

    kept: NDArray[np.bool_]
    elements: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is dropped."""
        return bool(self.kept.all()) and not self.elements

    def save(self, path: str | Path) -> None:
        """Write the mask as JSON: a digit per unit, and single entries in base64."""
        elements = {key: base64.b64encode(packed.tobytes()).decode() for key, packed in self.elements.items()}
        kept = "".join("1" if unit else "0" for unit in self.kept)
        files.write_text(Path(path), json.dumps({"kept": kept, "elements": elements}))

    @staticmethod
    def load(path: str | Path) -> "Mask":
        """Read a mask written by `save`.

        Raises:
            SettingError: If the file does not hold a mask.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            kept = np.array([{"0": False, "1": True}[digit] for digit in content["kept"]], dtype=np.bool_)
            elements = {
                key: np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
                for key, text in content["elements"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"path={str(path)!r} does not hold a mask: {error!r}") from None
        return Mask(kept, elements)


@dataclass(frozen=True, slots=True)
class LocalRules:
    """What a method asks of its clients beyond plain local training.

    Attributes:
        hooks: Functions from a `ClientView` to the `LocalHooks` that take part in its training.
        choose_locally: Where the client itself cuts its submodel: trains and returns the view to go on with.
        scale_by_keep_ratio: Divide every cut layer's output by the keep ratio while training (HeteroFL).
        own_classes_only: Zero the logits of classes a client has no rows of, and do not let it change their
            rows in the classifier (HeteroFL).
        static_norm: BatchNorm without running statistics in training, re-estimated before scoring (HeteroFL).
    """

    hooks: tuple[Callable[..., Any], ...] = ()
    choose_locally: Callable[..., Any] | None = None
    scale_by_keep_ratio: bool = False
    own_classes_only: bool = False
    static_norm: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ClientTask:
    """What one client does in a round: train the submodel that `mask` leaves, then maybe score it.

    Attributes:
        client: Its id.
        mask: What it downloads.
        budget: Share of channels the method's budget rule gives it.
        keep_ratio: Share of channels it trains in this round.
        epochs: Passes over its rows.
        score_heldout: Whether it scores its submodel on its held-out rows.
        cost: Predicted FLOPs.
        memory: What the method remembers of it.
    """

    client: int
    mask: Mask
    budget: float
    keep_ratio: float
    epochs: int
    score_heldout: bool
    cost: float
    memory: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """What all clients of a call receive.

    Attributes:
        round: Counted from 1.
        params: Global parameters and buffers.
        rules: What the method asks of them.
        extra: Tensors the method sends along, such as SCAFFOLD's server variate.
    """

    round: int
    params: Params
    rules: LocalRules
    extra: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class CohortTiming:
    """Simulated seconds of each cohort member, arrays `(cohort,)`."""

    download_s: NDArray[np.float64]
    compute_s: NDArray[np.float64]
    upload_s: NDArray[np.float64]

    @property
    def total_s(self) -> NDArray[np.float64]:
        """Seconds from the start of the round to the arrival of the update."""
        return self.download_s + self.compute_s + self.upload_s


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy and mean loss over a set of labelled rows."""

    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True)
class Reached:
    """When a run first reached an accuracy, and what it had spent by then."""

    accuracy: float
    round: int
    simulated_s: float
    bytes: int
    train_flops: int
    energy_j: float


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run has spent and reached so far.

    The `fedavg_` fields are what dense clients would have spent on the same work; the `preparation_` fields are
    part of the others: what was spent before round 1. `fates` counts what became of the clients that were asked,
    `empty_rounds` the rounds in which nobody's work counted.
    """

    down_bytes: int = 0
    up_bytes: int = 0
    train_flops: int = 0
    fedavg_down_bytes: int = 0
    fedavg_up_bytes: int = 0
    fedavg_train_flops: int = 0
    client_rounds: int = 0
    pruning_ratio_sum: float = 0.0
    simulated_s: float = 0.0
    preparation_s: float = 0.0
    preparation_bytes: int = 0
    preparation_flops: int = 0
    preparation_j: float = 0.0
    energy_j: float = 0.0
    empty_rounds: int = 0
    fates: Mapping[str, int] = field(default_factory=dict)
    accuracy: float | None = None
    best_accuracy: float | None = None
    reached: tuple[Reached, ...] = ()

    @property
    def bytes_percent_of_fedavg(self) -> float:
        """All bytes moved, in percent of what dense clients would have moved."""
        dense = self.fedavg_down_bytes + self.fedavg_up_bytes
        return 100 * (self.down_bytes + self.up_bytes) / max(1, dense)

    @property
    def flops_percent_of_fedavg(self) -> float:
        """All FLOPs trained, in percent of what dense clients would have trained."""
        return 100 * self.train_flops / max(1, self.fedavg_train_flops)


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """All that is remembered between rounds; a checkpoint is exactly this value.

    Attributes:
        round: Rounds played.
        params: Global parameters and buffers.
        memory: What the method and the server's optimizer remember.
        totals: What the run has spent and reached.
        clients: What the method remembers of single clients, by id.
        history: What is remembered of every client, `(clients,)` each: what is left in batteries, last losses.
        in_flight: Work that goes on between asynchronous rounds, one for each version of the model.
        versions: Parameters and buffers it started from, by the round in which it did.
        pack_size: Clients that are trained together at most, since it decides the last bits.
    """

    round: int
    params: Params
    memory: Params = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    clients: Mapping[int, Params] = field(default_factory=dict)
    history: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    in_flight: "tuple[Work, ...]" = ()
    versions: Mapping[int, Params] = field(default_factory=dict)
    pack_size: int = 1


@dataclass(frozen=True, slots=True)
class CoverageSummary:
    """How much of the model a cohort trained: shares of the cohort's examples per parameter entry."""

    mean: float
    min: float
    untrained_share: float
    untrained_channel_share: float


@dataclass(frozen=True, slots=True, eq=False)
class RoundReport:
    """All a tracker sees of a round.

    `clients` has one row per cohort member, `channels` one per unit of the plan (how many clients and examples
    trained it), `diagnostics` what was diagnosed by name, `incidents` what went wrong
    where clients are trained and was made good. `is_saved` tells whether a checkpoint covers it,
    `driver_bytes` the memory of the process that ran the round, `remarks` what was said meanwhile and has not been
    written to a terminal.
    """

    round: int
    timestamp_ms: int
    wall_s: float
    round_s: float
    totals: Totals
    train_loss: float
    submodel: Score | None
    score: Score | None
    coverage: CoverageSummary
    clients: Columns
    tiers: tuple[str, ...]
    channels: Columns = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    is_asynchronous: bool = False
    is_saved: bool = False
    driver_bytes: int = 0
    incidents: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a run leaves its files, and how often it saves its state."""

    folder: places.Given
    every: int
    keep: int

    def part(self, name: str) -> Place:
        """Return a folder of the run's: `checkpoints`, `channels`, `clients` or `rounds`."""
        return places.at(self.folder) / name


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: after the round of a checkpoint, or at the beginning (0).

    `wall_s` are the measured seconds that its rounds have taken before.
    """

    round: int = 0
    wall_s: float = 0.0


FIRST = Start()
"""The beginning."""
