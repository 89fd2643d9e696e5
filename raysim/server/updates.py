"""What a chunk of clients sends back, and how such contributions add up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raysim.core.tensors import Columns, Params
from raysim.server.fixed_point import ExactSum


@dataclass(frozen=True, slots=True, eq=False)
class ClientUpdates:
    """What a chunk of clients sends back.

    Attributes:
        sums: Exact sums over the clients: `update` of n_k D_k, for masks of single elements `held` of n_k m_k,
            and what the method's local rules report.
        clients: One row per client: `client`, `train_loss`, `epochs`, `accuracy` and `heldout_loss` (NaN if
            not scored).
        kept: Which units each client sends back, `(clients, num_units)`.
        channel_sums: Numbers per channel of each client, `(clients, sums, num_units)`; no sums where the
            method asks for none.
        memories: What is to be remembered of single clients, by id.
    """

    sums: dict[str, ExactSum]
    clients: Columns
    kept: NDArray[np.bool_]
    channel_sums: NDArray[np.float64]
    memories: Mapping[int, Params] = field(default_factory=dict)


class Accumulator:
    """Adds up contributions as they come; the result does not depend on their order or on who is in which.

    What comes from another process may not be written, and stays in memory shared with it while it is held. So of
    every contribution but the first the sums are added, and the rest is copied.
    """

    def __init__(self) -> None:
        self._sums: dict[str, ExactSum] = {}
        self._owned: set[str] = set()
        self._rows: list[ClientUpdates] = []

    def add(self, contribution: ClientUpdates) -> None:
        """Add a contribution.

        Raises:
            OverflowError: If a sum could leave the 64-bit range.
        """
        for name, total in contribution.sums.items():
            if name not in self._sums:
                self._sums[name] = total
                continue
            if name not in self._owned:
                self._sums[name] = _copied(self._sums[name])
                self._owned.add(name)
            self._sums[name].merge(total)
        self._rows.append(
            ClientUpdates(
                {},
                {name: column.copy() for name, column in contribution.clients.items()},
                contribution.kept.copy(),
                contribution.channel_sums.copy(),
                {
                    client: {key: tensor.clone() for key, tensor in memory.items()}
                    for client, memory in contribution.memories.items()
                },
            )
        )

    def total(self) -> ClientUpdates:
        """Return the sum of what was added, its clients in the order of their ids; nothing may be added later."""
        rows = self._rows
        by_id = np.argsort(np.concatenate([row.clients["client"] for row in rows]))
        return ClientUpdates(
            sums={name: self._sums[name] for name in sorted(self._sums)},
            clients={name: np.concatenate([row.clients[name] for row in rows])[by_id] for name in rows[0].clients},
            kept=np.concatenate([row.kept for row in rows])[by_id],
            channel_sums=np.concatenate([row.channel_sums for row in rows])[by_id],
            memories=dict(sorted(item for row in rows for item in row.memories.items())),
        )


def merge(contributions: Iterable[ClientUpdates]) -> ClientUpdates:
    """Add up contributions; the sums of a single one are taken over, not copied."""
    accumulator = Accumulator()
    for contribution in contributions:
        accumulator.add(contribution)
    return accumulator.total()


def _copied(total: ExactSum) -> ExactSum:
    return ExactSum({key: tensor.clone() for key, tensor in total.totals.items()}, total.magnitude)
