"""Rules that deal rows to clients: labels in, the rows of each client out."""

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
    """What a rule may read; the fields are those of the `data.partition` settings, None = the default."""

    alpha: float | None = None
    min_examples: int | None = None
    shards_per_client: int | None = None
    classes_per_client: int | None = None
    examples_per_client: int | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Deal:
    """What is dealt: the class of each row `(rows,)`, to how many clients, with which options and draws.

    `users` are the natural users of the rows, `(rows,)`, where the data set knows them.
    """

    labels: Rows
    num_clients: int
    options: PartitionOptions
    rng: np.random.Generator
    users: Rows | None = None

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


def iid(deal: Deal) -> list[Rows]:
    """Shuffle all rows and give every client an equally long piece, longer by at most one row."""
    return np.array_split(deal.rng.permutation(len(deal.labels)), deal.num_clients)


def dirichlet(deal: Deal) -> list[Rows]:
    """Give each client a share of every class, shares drawn from Dirichlet(alpha) class by class.

    Source: Yurochkin et al., arXiv 1905.12022.
    """
    parts: list[list[Rows]] = [[] for _ in range(deal.num_clients)]
    for label in np.unique(deal.labels):
        rows = deal.rng.permutation(np.flatnonzero(deal.labels == label))
        shares = deal.rng.dirichlet(np.full(deal.num_clients, deal.alpha))
        for part, piece in zip(parts, cut_by(rows, shares), strict=True):
            part.append(piece)
    return top_up([np.concatenate(pieces) for pieces in parts], deal.min_examples, deal.rng)


def dirichlet_clients(deal: Deal) -> list[Rows]:
    """Give all clients equally many rows, each with a class mix of its own from Dirichlet(alpha x class shares).

    Rows are drawn without replacement, clients in a random order; where a class is used up, the client takes
    more of its other classes, and of whatever is left where it has none.

    Source: Hsu et al., arXiv 1909.06335, section 3.
    """
    classes = deal.shuffled_classes()
    left = np.array([len(rows) for rows in classes])
    prior = left / left.sum()
    sizes = [len(piece) for piece in np.array_split(np.empty(len(deal.labels)), deal.num_clients)]
    parts: list[Rows] = [np.empty(0, dtype=np.int64)] * deal.num_clients
    for client in deal.rng.permutation(deal.num_clients):
        mix = deal.rng.dirichlet(np.maximum(deal.alpha * prior, 1e-12))
        taken = _draw_classes(mix, left, sizes[client], deal.rng)
        parts[client] = np.concatenate([
            rows[rest - count : rest] for rows, rest, count in zip(classes, left, taken, strict=True)
        ])  # fmt: skip
        left = left - taken
    return top_up(parts, deal.min_examples, deal.rng)


def _draw_classes(mix: NDArray[np.float64], left: Rows, size: int, rng: np.random.Generator) -> Rows:
    """Return how many rows of each class make up `size` rows, never more than are left."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        rest = left - taken
        weights = np.where(rest > 0, mix, 0.0)
        if weights.sum() <= 0:
            weights = rest.astype(np.float64)
        taken = taken + np.minimum(rng.multinomial(missing, weights / weights.sum()), rest)
    return taken


def shards(deal: Deal) -> list[Rows]:
    """Sort the rows by class, cut them into equal shards and give every client as many random ones.

    Shards differ by at most one row. Source: McMahan et al., arXiv 1602.05629, section 3 ("pathological").
    """
    each = deal.options.shards_per_client or DEFAULT_SHARDS
    count = each * deal.num_clients
    if count > len(deal.labels):
        raise SettingError(
            f"data.partition.shards_per_client={each} is not allowed with {deal.num_clients} clients and "
            f"{len(deal.labels)} training rows; allowed: 1 to {len(deal.labels) // deal.num_clients}"
        )
    pieces = np.array_split(np.concatenate(deal.shuffled_classes()), count)
    order = deal.rng.permutation(count).reshape(deal.num_clients, each)
    return [np.concatenate([pieces[shard] for shard in mine]) for mine in order]


def classes(deal: Deal) -> list[Rows]:
    """Give every client rows of exactly so many classes; a class is cut equally among those who hold it.

    The first class goes round in a random order of the clients, the others are drawn. The rows of a class that
    nobody holds (with fewer clients than classes) are left over.

    Source: Li et al., arXiv 2102.02079, "quantity-based label imbalance".
    """
    rows_of = deal.shuffled_classes()
    each = deal.options.classes_per_client or DEFAULT_CLASSES
    if each > len(rows_of):
        raise SettingError(
            f"data.partition.classes_per_client={each} is not allowed; allowed: 1 to {len(rows_of)}, the classes of "
            "the data"
        )
    held = np.zeros((deal.num_clients, len(rows_of)), dtype=np.bool_)
    for place, client in enumerate(deal.rng.permutation(deal.num_clients)):
        first = place % len(rows_of)
        others = deal.rng.choice(len(rows_of) - 1, each - 1, replace=False)
        held[client, [first, *((first + 1 + others) % len(rows_of))]] = True
    parts: list[list[Rows]] = [[] for _ in range(deal.num_clients)]
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


def quantity(deal: Deal) -> list[Rows]:
    """Shuffle all rows and give clients pieces of unequal length, shares drawn from Dirichlet(alpha).

    Source: Li et al., arXiv 2102.02079, "quantity skew".
    """
    rows = deal.rng.permutation(len(deal.labels))
    shares = deal.rng.dirichlet(np.full(deal.num_clients, deal.alpha))
    return top_up(cut_by(rows, shares), deal.min_examples, deal.rng)


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
