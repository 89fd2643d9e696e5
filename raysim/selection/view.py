"""The server's view when it selects clients, and weighted draws of clients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding

COLUMNS: dict[str, float] = {"asked_round": 0.0, "last_loss": np.nan, "last_s": np.nan}
"""Columns kept of clients, with their initial values: the last round in which a client was selected, its last mean
training loss, and the simulated seconds of its last round."""


@dataclass(frozen=True, slots=True, eq=False)
class SelectionView:
    """The server's view when it selects clients; arrays are `(clients,)`.

    Attributes:
        num_clients: Registered clients.
        size: How many to select.
        round: Counted from 1.
        seed: Seed of the experiment.
        examples: Training rows of each.
        online: Whether each can be reached. None: all can.
        exclude: Whether each must not be selected. None: all may be.
        history: Columns kept of each, by name (`COLUMNS`).
        options: Options of the rule, by name.
    """

    num_clients: int
    size: int
    round: int
    seed: int
    examples: NDArray[np.int64]
    online: NDArray[np.bool_] | None = None
    exclude: NDArray[np.bool_] | None = None
    history: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def reachable(self) -> NDArray[np.int64]:
        """Return the ids of the clients that can be reached and may be selected, ascending."""
        free = np.ones(self.num_clients, dtype=np.bool_) if self.online is None else self.online
        return np.flatnonzero(free if self.exclude is None else free & ~self.exclude)

    def remembered(self, column: str, clients: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return a column for some clients, `(clients,)`."""
        if column not in self.history:
            return np.full(len(clients), COLUMNS[column])
        return np.asarray(self.history[column][clients], dtype=np.float64)

    def arrivals(self, clients: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return arrival times of some clients: the first k to arrive are a weighted draw without replacement.

        They are exponential with rate `weights` (Efraimidis and Spirakis, 2006), drawn for (seed, round, client):
        a client's time does not depend on the other clients.

        Args:
            clients: Their ids.
            weights: Above 0; each next client is drawn in proportion to them. None: equal.
        """
        times = -np.log(seeding.uniform(self.seed, "selection", self.round, clients)[0])
        return np.asarray(times if weights is None else times / weights)


def first(clients: NDArray[np.int64], order: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the clients with the `count` lowest numbers, or all if there are fewer."""
    if count >= len(clients):
        return clients
    return clients[np.argpartition(order, count)[:count]]
