"""Deals rows to clients: labels in, the rows of each client out."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raysim import seeding
from raysim.errors import SettingError, unknown_name
from raysim.types import RowSets

Rows = NDArray[np.int64]
PartitionRule = Callable[[NDArray[np.int64], int, float | None, np.random.Generator], list[Rows]]


def partition(
    labels: NDArray[np.int64], num_clients: int, name: str, alpha: float | None, min_examples: int, seed: int
) -> RowSets:
    """Deal every row to exactly one client.

    Args:
        labels: Class of each row, `(num_examples,)`.
        num_clients: How many clients share the rows.
        name: A rule of `PARTITIONS`.
        alpha: The rule's concentration, where it has one.
        min_examples: Fewest rows of a client; poorer ones are topped up from the richest.
        seed: Seed of the experiment.

    Returns:
        The rows of each client, in ascending order.

    Raises:
        SettingError: If the rule is unknown, or there are fewer than `num_clients * min_examples` rows.
    """
    check_partition(name, alpha)
    if num_clients * min_examples > len(labels):
        raise SettingError(
            f"population.clients={num_clients} is too many for {len(labels)} training rows with "
            f"data.partition.min_examples={min_examples}; allowed: 1 to {len(labels) // min_examples}"
        )
    rng = seeding.generator(seed, "partition")
    parts = PARTITIONS[name](labels, num_clients, alpha, rng)
    return to_row_sets(top_up(parts, min_examples, rng))


def check_partition(name: str, alpha: float | None) -> None:
    """Raise SettingError if the rule is unknown or takes no alpha."""
    if name not in PARTITIONS:
        raise unknown_name("data.partition.name", name, PARTITIONS)
    if name == "iid" and alpha is not None:
        raise SettingError(f"data.partition.alpha={alpha} has no effect with name='iid'; allowed: null")


def dirichlet(
    labels: NDArray[np.int64], num_clients: int, alpha: float | None, rng: np.random.Generator
) -> list[Rows]:
    """Give each client a share of every class, shares drawn from Dirichlet(alpha) class by class.

    Source: Hsu et al., arXiv 1909.06335, in the per-class form of Yurochkin et al., arXiv 1905.12022.
    """
    parts: list[list[Rows]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_clients, 0.5 if alpha is None else alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def iid(labels: NDArray[np.int64], num_clients: int, alpha: float | None, rng: np.random.Generator) -> list[Rows]:
    """Shuffle all rows and give every client an equally long piece, longer by at most one row."""
    return np.array_split(rng.permutation(len(labels)), num_clients)


def top_up(parts: list[Rows], min_examples: int, rng: np.random.Generator) -> list[Rows]:
    """Move random rows from the richest clients to those with fewer than `min_examples`."""
    parts = list(parts)
    for poor in range(len(parts)):
        while (missing := min_examples - len(parts[poor])) > 0:
            rich = int(np.argmax([len(part) for part in parts]))
            given = min(missing, len(parts[rich]) - min_examples)
            shuffled = rng.permutation(parts[rich])
            parts[rich] = shuffled[given:]
            parts[poor] = np.concatenate([parts[poor], shuffled[:given]])
    return parts


def to_row_sets(parts: list[Rows]) -> RowSets:
    """Pack one array of rows per client, sorted, into offsets and rows."""
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    rows = np.concatenate([np.sort(part) for part in parts]).astype(np.int64)
    return RowSets(offsets, rows)


PARTITIONS: dict[str, PartitionRule] = {"dirichlet": dirichlet, "iid": iid}
