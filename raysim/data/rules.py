"""Rules that divide training rows among clients, from the class of each row."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysim.core.errors import SettingError

Rows = NDArray[np.int64]
DEFAULT_ALPHA = 0.5
DEFAULT_MIN_EXAMPLES = 2
DEFAULT_SHARDS = 2
DEFAULT_CLASSES = 2
DEFAULT_DRAWN = 100


@dataclass(frozen=True, slots=True)
class PartitionOptions:
    """Options of the rules; the fields are those of the `data.partition` settings. None: the default."""

    alpha: float | None = None
    min_examples: int | None = None
    shards_per_client: int | None = None
    classes_per_client: int | None = None
    examples_per_client: int | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RowPool:
    """Training rows to divide among clients.

    Attributes:
        labels: Class of each row, `(rows,)`.
        num_clients: Number of clients.
        options: Options of the rule.
        rng: Draws of the rule.
        users: Natural user of each row, `(rows,)`; None: the data set has no users.
        numbers: Number of each row in the data set, `(rows,)`, ascending; None: the pool is all of its training rows.
        num_rows: Training rows of the data set; None: as many as the pool has.
    """

    labels: Rows
    num_clients: int
    options: PartitionOptions
    rng: np.random.Generator
    users: Rows | None = None
    numbers: Rows | None = None
    num_rows: int | None = None

    @property
    def size_of_data(self) -> int:
        """Training rows of the data set, those outside the pool included."""
        return len(self.labels) if self.num_rows is None else self.num_rows

    @property
    def alpha(self) -> float:
        """Concentration of a Dirichlet distribution."""
        return DEFAULT_ALPHA if self.options.alpha is None else self.options.alpha

    @property
    def min_examples(self) -> int:
        """Fewest rows of a client."""
        return self.options.min_examples or DEFAULT_MIN_EXAMPLES

    def shuffled_classes(self) -> list[Rows]:
        """Return the rows of each class that has any, in a random order."""
        return [self.rng.permutation(np.flatnonzero(self.labels == label)) for label in np.unique(self.labels)]


def iid(pool: RowPool) -> list[Rows]:
    """Shuffle all rows and give every client an equally long piece, longer by at most one row."""
    return np.array_split(pool.rng.permutation(len(pool.labels)), pool.num_clients)


def dirichlet(pool: RowPool) -> list[Rows]:
    """Give each client a share of every class, shares drawn from Dirichlet(alpha) class by class.

    Source: Yurochkin et al., arXiv 1905.12022.
    """
    parts: list[list[Rows]] = [[] for _ in range(pool.num_clients)]
    for label in np.unique(pool.labels):
        rows = pool.rng.permutation(np.flatnonzero(pool.labels == label))
        shares = pool.rng.dirichlet(np.full(pool.num_clients, pool.alpha))
        for part, piece in zip(parts, cut_by(rows, shares), strict=True):
            part.append(piece)
    return top_up([np.concatenate(pieces) for pieces in parts], pool.min_examples, pool.rng)


def dirichlet_clients(pool: RowPool) -> list[Rows]:
    """Give all clients equally many rows, each with a class mix of its own from Dirichlet(alpha x class shares).

    Rows are drawn without replacement, clients in a random order. If a class is used up, the client gets more rows
    of its other classes; if all of these are used up, it gets rows of any class.

    Source: Hsu et al., arXiv 1909.06335, section 3.
    """
    classes = pool.shuffled_classes()
    left = np.array([len(rows) for rows in classes])
    prior = left / left.sum()
    sizes = [len(piece) for piece in np.array_split(np.empty(len(pool.labels)), pool.num_clients)]
    parts: list[Rows] = [np.empty(0, dtype=np.int64)] * pool.num_clients
    for client in pool.rng.permutation(pool.num_clients):
        mix = pool.rng.dirichlet(np.maximum(pool.alpha * prior, 1e-12))
        drawn = _draw_classes(mix, left, sizes[client], pool.rng)
        parts[client] = np.concatenate(
            [rows[rest - count : rest] for rows, rest, count in zip(classes, left, drawn, strict=True)]
        )
        left = left - drawn
    return top_up(parts, pool.min_examples, pool.rng)


def _draw_classes(mix: NDArray[np.float64], left: Rows, size: int, rng: np.random.Generator) -> Rows:
    """Return how many rows of each class make up `size` rows, never more than are left."""
    drawn = np.zeros_like(left)
    while (missing := size - int(drawn.sum())) > 0:
        rest = left - drawn
        weights = np.where(rest > 0, mix, 0.0)
        if weights.sum() <= 0:
            weights = rest.astype(np.float64)
        drawn = drawn + np.minimum(rng.multinomial(missing, weights / weights.sum()), rest)
    return drawn


def shards(pool: RowPool) -> list[Rows]:
    """Sort the rows by class, cut them into equal shards and give every client as many random ones.

    Shards differ by at most one row. Source: McMahan et al., arXiv 1602.05629, section 3 ("pathological").
    """
    each = pool.options.shards_per_client or DEFAULT_SHARDS
    count = each * pool.num_clients
    if count > len(pool.labels):
        raise SettingError(
            f"data.partition.shards_per_client={each} is not allowed with {pool.num_clients} clients and "
            f"{len(pool.labels)} training rows; allowed: 1 to {len(pool.labels) // pool.num_clients}"
        )
    pieces = np.array_split(np.concatenate(pool.shuffled_classes()), count)
    order = pool.rng.permutation(count).reshape(pool.num_clients, each)
    return [np.concatenate([pieces[shard] for shard in mine]) for mine in order]


def classes(pool: RowPool) -> list[Rows]:
    """Give every client rows of a fixed number of classes; a class is divided equally among its holders.

    First classes are assigned in turn to clients in random order, the others are drawn. Rows of a class that nobody
    holds, which needs fewer clients than classes, are left over.

    Source: Li et al., arXiv 2102.02079, "quantity-based label imbalance".
    """
    rows_of = pool.shuffled_classes()
    each = pool.options.classes_per_client or DEFAULT_CLASSES
    if each > len(rows_of):
        raise SettingError(
            f"data.partition.classes_per_client={each} is not allowed; allowed: 1 to {len(rows_of)}, the classes of "
            "the data"
        )
    held = np.zeros((pool.num_clients, len(rows_of)), dtype=np.bool_)
    for turn, client in enumerate(pool.rng.permutation(pool.num_clients)):
        first = turn % len(rows_of)
        others = pool.rng.choice(len(rows_of) - 1, each - 1, replace=False)
        held[client, [first, *((first + 1 + others) % len(rows_of))]] = True
    parts: list[list[Rows]] = [[] for _ in range(pool.num_clients)]
    for label, rows in enumerate(rows_of):
        owners = np.flatnonzero(held[:, label])
        if len(owners) > len(rows):
            raise SettingError(
                f"data.partition.classes_per_client={each} is not allowed: class {label} has {len(rows)} training "
                f"rows for {len(owners)} clients; allowed: fewer classes, or fewer population.clients"
            )
        for owner, piece in zip(owners, np.array_split(rows, len(owners)) if len(owners) else [], strict=True):
            parts[owner].append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def quantity(pool: RowPool) -> list[Rows]:
    """Shuffle all rows and give clients pieces of unequal length, shares drawn from Dirichlet(alpha).

    Source: Li et al., arXiv 2102.02079, "quantity skew".
    """
    rows = pool.rng.permutation(len(pool.labels))
    shares = pool.rng.dirichlet(np.full(pool.num_clients, pool.alpha))
    return top_up(cut_by(rows, shares), pool.min_examples, pool.rng)


def cut_by(rows: Rows, shares: NDArray[np.float64]) -> list[Rows]:
    """Cut rows into pieces of given shares; the cuts are rounded to whole rows."""
    cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
    return np.split(rows, cuts)


def top_up(parts: list[Rows], min_examples: int, rng: np.random.Generator) -> list[Rows]:
    """Move random rows from the richest clients to those with fewer than `min_examples`."""
    parts = list(parts)
    counts = np.array([len(part) for part in parts])
    for poor in np.flatnonzero(counts < min_examples):
        while (missing := min_examples - counts[poor]) > 0:
            rich = int(np.argmax(counts))
            given = min(missing, counts[rich] - min_examples)
            shuffled = rng.permutation(parts[rich])
            parts[rich] = shuffled[given:]
            parts[poor] = np.concatenate([parts[poor], shuffled[:given]])
            counts[rich] -= given
            counts[poor] += given
    return parts
