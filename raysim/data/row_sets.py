"""Record which rows of the data each client owns."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ClientRows(Protocol):
    """Which rows of the data each client owns: stored, or drawn whenever they are needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, client: int) -> NDArray[np.int64]: ...

    def several(self, clients: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of some clients, one after another, and how many each has, `(len(clients),)`."""
        ...

    def counts_of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many rows some clients have, `(len(clients),)`."""
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
        """Return the rows of some clients, one after another, and how many each has, `(len(clients),)`."""
        return np.concatenate([self[client] for client in clients.tolist()]), self.counts_of(clients)

    def counts_of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many rows some clients have, `(len(clients),)`."""
        return self.offsets[clients + 1] - self.offsets[clients]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each client, `(clients,)`."""
        return np.diff(self.offsets)

    @property
    def identity(self) -> list[NDArray[np.int64]]:
        """Arrays that decide who owns which rows."""
        return [self.offsets, self.rows]
