"""Updates of a chunk of clients, and how the updates of several chunks add up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.tensors import Columns, Params
from raysim.pruning.submodel import put
from raysim.server.fixed_point import ExactSum


@dataclass(frozen=True, slots=True, eq=False)
class ClientUpdates:
    """Everything that a chunk of clients sends back.

    Attributes:
        sums: Exact sums over the clients: `update` of n_k D_k, for masks of single entries `held` of n_k m_k,
            and the reports of the method's local rules.
        clients: One row per client: `client`, `train_loss`, `epochs`, the task's primary metric (`accuracy`) and
            `heldout_loss` (both NaN if it is not scored).
        kept: Which units each client sends back, `(clients, num_units)`.
        channel_sums: Numbers per channel of each client, `(clients, sums, num_units)`; no sums if the method
            needs none.
        memories: Tensors to be remembered of single clients, by id.
        largest: The largest value of each entry of a tensor of whole numbers or booleans among the clients that hold
            it, in the full model's coordinates; the least number of its type where none does.
    """

    sums: dict[str, ExactSum]
    clients: Columns
    kept: NDArray[np.bool_]
    channel_sums: NDArray[np.float64]
    memories: Mapping[int, Params] = field(default_factory=dict)
    largest: Params = field(default_factory=dict)


class Accumulator:
    """Adds up updates as they arrive; the result depends neither on their order nor on how clients are grouped.

    Arrays from another process are read-only and occupy memory shared with it as long as they are referenced. So all
    sums but the first are added and released, and everything else is copied.
    """

    def __init__(self) -> None:
        self._sums: dict[str, ExactSum] = {}
        self._owned: set[str] = set()
        self._rows: list[ClientUpdates] = []
        self._largest: Params = {}

    def add(self, updates: ClientUpdates) -> None:
        """Add the updates of a chunk; sums have no limit, so that this cannot fail for what the chunk holds."""
        for name, total in updates.sums.items():
            if name not in self._sums:
                self._sums[name] = total
                continue
            if name not in self._owned:
                self._sums[name] = self._sums[name].copy()
                self._owned.add(name)
            self._sums[name].merge(total)
        self._largest = largest_of([self._largest, updates.largest])
        self._rows.append(
            ClientUpdates(
                {},
                {name: column.copy() for name, column in updates.clients.items()},
                updates.kept.copy(),
                updates.channel_sums.copy(),
                {
                    client: {key: tensor.clone() for key, tensor in memory.items()}
                    for client, memory in updates.memories.items()
                },
            )
        )

    def total(self) -> ClientUpdates:
        """Return the sum, its clients in the order of their ids; nothing may be added afterwards."""
        rows = self._rows
        by_id = np.argsort(np.concatenate([row.clients["client"] for row in rows]))
        return ClientUpdates(
            sums={name: self._sums[name] for name in sorted(self._sums)},
            clients={name: np.concatenate([row.clients[name] for row in rows])[by_id] for name in rows[0].clients},
            kept=np.concatenate([row.kept for row in rows])[by_id],
            channel_sums=np.concatenate([row.channel_sums for row in rows])[by_id],
            memories=dict(sorted(item for row in rows for item in row.memories.items())),
            largest=self._largest,
        )


def merge(several: Iterable[ClientUpdates]) -> ClientUpdates:
    """Add up the updates of several chunks; the sums of a single one are not copied."""
    accumulator = Accumulator()
    for updates in several:
        accumulator.add(updates)
    return accumulator.total()


def largest_of(several: Iterable[Params]) -> Params:
    """Return the largest value of each entry, in new memory, whatever the order."""
    largest: Params = {}
    for each in several:
        for key, tensor in each.items():
            largest[key] = torch.maximum(largest[key], tensor) if key in largest else tensor.clone()
    return largest


def spread_out(compact: torch.Tensor, dims: Mapping[int, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return a submodel's tensor in the full model's coordinates, with the least number where it holds nothing."""
    if not dims:
        return compact.clone()
    least = False if like.dtype == torch.bool else torch.iinfo(like.dtype).min
    full = torch.full_like(like, least)
    put(full, dims, compact)
    return full
