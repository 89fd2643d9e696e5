"""The nouns: frozen records that the other modules pass to each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Params = dict[str, "torch.Tensor"]
"""Parameters and buffers of a model by state-dict key."""

Columns = dict[str, NDArray[np.generic]]
"""A table as equally long one-dimensional arrays by column name."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What a device can do; every constant belongs to the simulated clock, not to this machine.

    `compute_variation` and `link_variation` are standard deviations as shares of the mean.
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


@dataclass(frozen=True, slots=True)
class Tier:
    """A share of the population with one device profile and the share of channels it can train."""

    device: DeviceProfile
    share: float
    keep_ratio: float


class ClientRows(Protocol):
    """Which rows of the data each client owns: stored for all, or drawn when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, client: int) -> NDArray[np.int64]: ...

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
    """One row of the population: who it is, its device, and how many training and held-out rows it owns."""

    id: int
    tier: Tier
    examples: int
    heldout: int


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """All clients as columns; nothing is built per registered client."""

    tiers: tuple[Tier, ...]
    tier_of: NDArray[np.int64]
    train: ClientRows
    heldout: ClientRows

    def __len__(self) -> int:
        return len(self.tier_of)

    def client(self, id: int) -> Client:
        """Return the record of one client."""
        tier = self.tiers[int(self.tier_of[id])]
        return Client(id, tier, len(self.train[id]), len(self.heldout[id]))


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


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of the model one client can afford, as share of channels, and what limited it."""

    keep_ratio: float
    limited_by: str


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
        keep_ratio: Its budget, as share of channels.
        epochs: Passes over its rows.
        score_heldout: Whether it scores its submodel on its held-out rows.
        cost: Predicted FLOPs.
        memory: What the method remembers of it.
    """

    client: int
    mask: Mask
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
class Totals:
    """What a run has spent and reached so far; the `fedavg_` fields are what dense clients would have spent.

    The `preparation_` fields are part of the others: what was spent before round 1.
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
    accuracy: float | None = None
    best_accuracy: float | None = None

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
    """

    round: int
    params: Params
    memory: Params = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    clients: Mapping[int, Params] = field(default_factory=dict)


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

    `clients` has one row per cohort member, `diagnostics` what was diagnosed by name.
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
    diagnostics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a run leaves its files, and how often it saves its state."""

    folder: Path
    every: int
    keep: int
