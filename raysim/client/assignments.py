"""The assignments of several clients as columns; nothing is built per client until it is played."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysim.client.compression import Compression
from raysim.core.tensors import Params
from raysim.pruning.masks import CohortMasks, Mask

if TYPE_CHECKING:
    pass


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
        compression: How updates are made smaller before they are sent; None: they are sent whole.
    """

    hooks: tuple[Callable[..., Any], ...] = ()
    choose_locally: Callable[..., Any] | None = None
    scale_by_keep_ratio: bool = False
    own_classes_only: bool = False
    static_norm: bool = False
    compression: Compression | None = None

    @property
    def remembers_updates(self) -> bool:
        """Whether a client's assignment carries what a compression remembers of it."""
        return self.compression is not None and self.compression.remembers


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
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


ALONE = -1
"""Pack of a client that is trained by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignments:
    """What clients do in a round, arrays `(clients,)`; a sequence of `Assignment`.

    Attributes:
        clients: Their ids.
        masks: What each downloads.
        budgets: Share of channels the method's budget rule gives each.
        keep_ratios: Share of channels each trains.
        epochs: Passes over its rows.
        scored: Whether it scores its submodel on its held-out rows.
        costs: Predicted FLOPs.
        packs: Clients of one number are trained together, in one batch of models; `ALONE` = by itself.
        memories: What the method remembers of them, by id.
    """

    clients: NDArray[np.int64]
    masks: CohortMasks
    budgets: NDArray[np.float64]
    keep_ratios: NDArray[np.float64]
    epochs: NDArray[np.int64]
    scored: NDArray[np.bool_]
    costs: NDArray[np.float64]
    packs: NDArray[np.int64]
    memories: Mapping[int, Params] = field(default_factory=dict)

    @staticmethod
    def of_rows(rows: Sequence[Assignment]) -> "Assignments":
        """Return single assignments as columns; each is trained by itself."""
        return Assignments(
            np.array([row.client for row in rows], dtype=np.int64),
            CohortMasks.of([row.mask for row in rows]),
            np.array([row.budget for row in rows]),
            np.array([row.keep_ratio for row in rows]),
            np.array([row.epochs for row in rows], dtype=np.int64),
            np.array([row.score_heldout for row in rows], dtype=np.bool_),
            np.array([row.cost for row in rows]),
            np.full(len(rows), ALONE),
            {row.client: row.memory for row in rows if row.memory},
        )

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, place: int) -> Assignment:
        client = int(self.clients[place])
        return Assignment(
            client, self.masks[place], float(self.budgets[place]), float(self.keep_ratios[place]),
            int(self.epochs[place]), bool(self.scored[place]), float(self.costs[place]),
            self.memories.get(client, {}),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Assignment]:
        return (self[place] for place in range(len(self)))

    def take(self, places: NDArray[np.int64]) -> "Assignments":
        """Return the assignments of some clients."""
        clients = self.clients[places]
        memories = self.memories
        if memories:
            memories = {client: memories[client] for client in clients.tolist() if client in memories}
        return Assignments(
            clients, self.masks.take(places), self.budgets[places], self.keep_ratios[places], self.epochs[places],
            self.scored[places], self.costs[places], self.packs[places], memories,
        )  # fmt: skip

    def chunks(self, shares: Sequence[float]) -> "list[Assignments]":
        """Cut assignments into chunks of about these shares of the predicted cost, the costliest clients first.

        Packs stay whole. A chunk for which no client is left is not there.
        """
        order = np.lexsort((self.clients, self.packs, -_cost_of_pack(self)))
        ends_cost = np.cumsum(self.costs[order])
        whole = float(ends_cost[-1]) or 1.0
        middles = (ends_cost - self.costs[order] / 2) / whole
        chunk_of = np.minimum(np.searchsorted(np.cumsum(shares), middles), len(shares) - 1)
        packs = self.packs[order]
        goes_on = np.concatenate([[False], (packs[1:] == packs[:-1]) & (packs[1:] != ALONE)])
        first = np.maximum.accumulate(np.where(goes_on, 0, np.arange(len(order))))
        chunk_of = chunk_of[first]
        return [self.take(order[chunk_of == chunk]) for chunk in np.unique(chunk_of)]

    def apart(self) -> "list[Assignments]":
        """Cut assignments into single clients, and into packs."""
        packed = np.unique(self.packs[self.packs != ALONE])
        places = [*np.flatnonzero(self.packs == ALONE)[:, None], *(np.flatnonzero(self.packs == p) for p in packed)]
        return [self.take(each) for each in places]


def _cost_of_pack(assignments: Assignments) -> NDArray[np.float64]:
    """Return the cost that decides when each client comes: its own, or all of its pack's, `(clients,)`."""
    packed = assignments.packs != ALONE
    if not packed.any():
        return assignments.costs
    sums = np.bincount(assignments.packs[packed], weights=assignments.costs[packed])
    costs = assignments.costs.copy()
    costs[packed] = sums[assignments.packs[packed]]
    return costs
