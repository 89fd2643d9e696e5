"""Draw the rows of a client whenever they are needed, so that a million clients need no memory."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding


@dataclass(frozen=True, slots=True, eq=False)
class DrawnRows:
    """The rows of each client, drawn anew from (seed, client) whenever they are needed.

    A client draws `examples` of `num_rows` rows without replacement; two clients may own the same row. This record
    stands for the draws numbered `start` to `stop`, so that training and held-out rows of a client never overlap.
    `numbers` `(num_rows,)` are the numbers of the rows in the data set; None: 0, 1, 2, ...
    """

    seed: int
    num_clients: int
    num_rows: int
    examples: int
    start: int
    stop: int
    numbers: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.num_clients

    def __getitem__(self, client: int) -> NDArray[np.int64]:
        if not 0 <= client < self.num_clients:
            raise IndexError(client)
        return np.asarray(self._of(np.array([client]))[0], dtype=np.int64)

    def several(self, clients: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of some clients, one after another, and how many each has, `(those,)`."""
        return self._of(clients).ravel(), self.counts_of(clients)

    def counts_of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many rows some clients have, `(those,)`."""
        return np.full(len(clients), self.stop - self.start)

    def _of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        drawn = seeding.choices(self.seed, "resample", clients, self.num_rows, self.examples)
        own = np.sort(drawn[:, self.start : self.stop], axis=1)
        return np.asarray(own if self.numbers is None else self.numbers[own])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each client, `(clients,)`: a view that repeats one number."""
        return np.broadcast_to(np.int64(self.stop - self.start), (self.num_clients,))

    @property
    def identity(self) -> list[NDArray[np.int64]]:
        """The numbers that decide all rows, for a digest."""
        key = seeding.derive_seed(self.seed, "resample")
        drawn = np.array([key, self.num_clients, self.num_rows, self.examples, self.start, self.stop])
        return [drawn] if self.numbers is None else [drawn, self.numbers]

    def split(self, num_heldout: int) -> "tuple[DrawnRows, DrawnRows]":
        """Return training and held-out rows: the first `num_heldout` draws of each client are held out."""
        return replace(self, start=num_heldout), replace(self, stop=num_heldout)
