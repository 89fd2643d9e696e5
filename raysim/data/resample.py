"""Clients that draw their rows when asked, so that a million of them need no memory."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raysim import seeding


@dataclass(frozen=True, slots=True, eq=False)
class DrawnRows:
    """The rows of each client, drawn anew from (seed, client) whenever they are asked for.

    A client draws `examples` of `num_rows` rows without replacement; two clients may own the same row. These are
    its places `start` to `stop` of that draw, so that training and held-out rows of a client never overlap.
    """

    seed: int
    num_clients: int
    num_rows: int
    examples: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.num_clients

    def __getitem__(self, client: int) -> NDArray[np.int64]:
        if not 0 <= client < self.num_clients:
            raise IndexError(client)
        rng = seeding.generator(self.seed, "resample", client=int(client))
        return np.sort(rng.choice(self.num_rows, self.examples, replace=False)[self.start : self.stop])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each client, `(clients,)`: one number seen many times."""
        return np.broadcast_to(np.int64(self.stop - self.start), (self.num_clients,))

    @property
    def identity(self) -> list[NDArray[np.int64]]:
        """What decides all rows."""
        key = seeding.derive_seed(self.seed, "resample")
        return [np.array([key, self.num_clients, self.num_rows, self.examples, self.start, self.stop])]

    def split(self, num_heldout: int) -> "tuple[DrawnRows, DrawnRows]":
        """Return training and held-out rows: the first `num_heldout` places of each client are held out."""
        return replace(self, start=num_heldout), replace(self, stop=num_heldout)
