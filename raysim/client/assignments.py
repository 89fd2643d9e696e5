"""Assignments of clients in a round, as columns; the record of one client is built when it is trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.client.compression import Compression
from raysim.clock.work import Cohort
from raysim.core.tensors import Params
from raysim.pruning.masks import CohortMasks, Mask


@dataclass(frozen=True, slots=True)
class LocalRules:
    """Rules of a method for its clients, beyond plain local training.

    Attributes:
        hooks: Functions from a `ClientView` to the `LocalHooks` that take part in its training.
        choose_locally: Lets the client cut its submodel by itself: it trains, and returns the view to continue with.
        scale_by_keep_ratio: Divide every cut layer's output by the keep ratio while training (HeteroFL).
        own_classes_only: Zero the logits of classes a client has no rows of, and do not let it change their
            rows in the classifier (HeteroFL).
        static_norm: Train BatchNorm without running statistics, and re-estimate them before scoring (HeteroFL).
        compression: Makes updates smaller before they are sent; None: they are sent whole.
    """

    hooks: tuple[Callable[..., Any], ...] = ()
    choose_locally: Callable[..., Any] | None = None
    scale_by_keep_ratio: bool = False
    own_classes_only: bool = False
    static_norm: bool = False
    compression: Compression | None = None

    @property
    def remembers_updates(self) -> bool:
        """Whether a client's assignment carries the memory of a compression."""
        return self.compression is not None and self.compression.remembers


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """The assignment of one client in a round: train a submodel, and score it if `score_heldout`.

    Attributes:
        client: Its id.
        mask: Mask of the submodel that is downloaded.
        budget: Share of channels the method's budget rule gives it.
        keep_ratio: Share of channels it trains in this round.
        epochs: Passes over its rows.
        score_heldout: Whether it scores its submodel on its held-out rows.
        cost: Predicted FLOPs.
        memory: State that the method and the compression keep of it.
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
    """The values that all clients of a call receive.

    Attributes:
        round: Counted from 1.
        params: Global parameters and buffers.
        rules: Rules beyond plain local training.
        extra: Tensors the method sends along, such as SCAFFOLD's server variate.
    """

    round: int
    params: Params
    rules: LocalRules
    extra: Params = field(default_factory=dict)


ALONE = -1
"""Pack number of a client that is trained by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignments:
    """The assignments of clients in a round, arrays `(clients,)`; a sequence of `Assignment`.

    Attributes:
        cohort: The clients, with their keep ratios and epochs.
        masks: Masks of the submodels that are downloaded.
        scored: Whether it scores its submodel on its held-out rows.
        costs: Predicted FLOPs.
        packs: Pack numbers: clients of one pack are trained together; `ALONE`: by itself.
        memories: State that the method and the compression keep of them, by id.
    """

    cohort: Cohort
    masks: CohortMasks
    scored: NDArray[np.bool_]
    costs: NDArray[np.float64]
    packs: NDArray[np.int64]
    memories: Mapping[int, Params] = field(default_factory=dict)

    @staticmethod
    def of_rows(rows: Sequence[Assignment]) -> "Assignments":
        """Return single assignments as columns; each is trained by itself."""
        cohort = Cohort(
            round=0,
            clients=np.array([row.client for row in rows], dtype=np.int64),
            budgets=np.array([row.budget for row in rows]),
            keep_ratios=np.array([row.keep_ratio for row in rows]),
            limited_by=np.full(len(rows), ""),
            examples=np.zeros(len(rows), dtype=np.int64),
            epochs=np.array([row.epochs for row in rows], dtype=np.int64),
        )
        return Assignments(
            cohort,
            CohortMasks.of([row.mask for row in rows]),
            np.array([row.score_heldout for row in rows], dtype=np.bool_),
            np.array([row.cost for row in rows]),
            np.full(len(rows), ALONE),
            {row.client: row.memory for row in rows if row.memory},
        )

    @property
    def clients(self) -> NDArray[np.int64]:
        """Ids of the clients, `(clients,)`."""
        return self.cohort.clients

    @property
    def epochs(self) -> NDArray[np.int64]:
        """Passes of each client over its rows, `(clients,)`."""
        return self.cohort.epochs

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, index: int) -> Assignment:
        client = int(self.clients[index])
        return Assignment(
            client,
            self.masks[index],
            float(self.cohort.budgets[index]),
            float(self.cohort.keep_ratios[index]),
            int(self.epochs[index]),
            bool(self.scored[index]),
            float(self.costs[index]),
            self.memories.get(client, {}),
        )

    def __iter__(self) -> Iterator[Assignment]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: NDArray[np.int64]) -> "Assignments":
        """Return the assignments of some clients."""
        cohort, memories = self.cohort.take(indices), self.memories
        if memories:
            memories = {client: memories[client] for client in cohort.clients.tolist() if client in memories}
        return Assignments(
            cohort,
            self.masks.take(indices),
            self.scored[indices],
            self.costs[indices],
            self.packs[indices],
            memories,
        )

    def chunks(self, shares: Sequence[float]) -> "list[Assignments]":
        """Cut assignments into chunks of about these shares of the predicted cost, the costliest clients first.

        Packs stay whole. Empty chunks are left out.
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
        """Split assignments into single clients and packs."""
        packed = np.unique(self.packs[self.packs != ALONE])
        alone = np.flatnonzero(self.packs == ALONE)
        return [
            self.take(each) for each in (*alone[:, None], *(np.flatnonzero(self.packs == pack) for pack in packed))
        ]


def _cost_of_pack(assignments: Assignments) -> NDArray[np.float64]:
    """Return the cost by which clients are ordered: each one's own, or that of its whole pack, `(clients,)`."""
    packed = assignments.packs != ALONE
    if not packed.any():
        return assignments.costs
    sums = np.bincount(assignments.packs[packed], weights=assignments.costs[packed])
    costs = assignments.costs.copy()
    costs[packed] = sums[assignments.packs[packed]]
    return costs
