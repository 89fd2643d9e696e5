"""What a selection rule may look at, and how clients are drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding

COLUMNS: dict[str, float] = {"asked_round": 0.0, "last_loss": np.nan, "last_s": np.nan}
"""What can be remembered of clients, and what stands for nothing: the last round in which one was asked, its last
mean training loss, and the simulated seconds of its last round."""


@dataclass(frozen=True, slots=True, eq=False)
class SelectionView:
    """What the server knows when it asks clients to take part; arrays are `(clients,)`.

    Attributes:
        num_clients: Registered clients.
        size: How many to ask.
        round: Counted from 1.
        seed: Seed of the experiment.
        examples: Training rows of each.
        online: Whether each can be reached; none = all can.
        exclude: Whether each must not be asked; none = all may.
        history: What is remembered of each, by name (`COLUMNS`).
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
        """Return the ids of those who can be reached and may be asked, ascending."""
        free = np.ones(self.num_clients, dtype=np.bool_) if self.online is None else self.online
        return np.flatnonzero(free if self.exclude is None else free & ~self.exclude)

    def remembered(self, column: str, clients: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what is remembered of some clients, `(those,)`."""
        if column not in self.history:
            return np.full(len(clients), COLUMNS[column])
        return np.asarray(self.history[column][clients], dtype=np.float64)

    def arrivals(self, clients: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return arrival times of some clients: the first k to arrive are a weighted draw without replacement.

        They are exponential with rate `weights` (Efraimidis and Spirakis, 2006), drawn for (seed, round, client):
        a client's does not depend on who else can be drawn.

        Args:
            clients: Their ids.
            weights: Above 0, in proportion to which each next client is drawn; none = equal.
        """
        times = -np.log(seeding.uniform(self.seed, "selection", self.round, clients)[0])
        return np.asarray(times if weights is None else times / weights)


def first(clients: NDArray[np.int64], order: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the clients with the `count` lowest numbers, all where there are not so many."""
    if count >= len(clients):
        return clients
    return clients[np.argpartition(order, count)[:count]]
