"""Divide training rows among clients: the table of rules, and the checks that all of them share."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from raysim.core import seeding
from raysim.core.errors import SettingError, nearest_first, unknown_name
from raysim.data import given, rules
from raysim.data.resample import DrawnRows
from raysim.data.row_sets import RowSets
from raysim.data.rules import PartitionOptions, RowPool, Rows


@dataclass(frozen=True, slots=True)
class PartitionRule:
    """A rule of the table.

    Attributes:
        divide: Returns one array of rows per client; None: clients draw their rows lazily.
        reads: Options that it reads.
        needs: Options that must be given.
        needs_classes: Whether it divides rows by their class.
    """

    divide: Callable[[RowPool], list[Rows]] | None
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    needs_classes: bool = False


def partition(
    labels: Rows,
    num_clients: int,
    name: str,
    options: PartitionOptions,
    seed: int,
    users: Rows | None = None,
    without: Rows | None = None,
    without_classes: str | None = None,
) -> RowSets | DrawnRows:
    """Divide the training rows among clients, every row to at most one (`resample` apart).

    Args:
        labels: Class of each row, `(num_examples,)`.
        num_clients: Number of clients.
        name: A rule of `PARTITIONS`.
        options: Options of the rule.
        seed: Seed of the experiment.
        users: Natural user of each row, `(num_examples,)`, if the data set has any.
        without: Rows that no client gets; None: there are none.
        without_classes: Name of a task whose rows have no classes; None: they have.

    Returns:
        The rows of each client, in ascending order.

    Raises:
        SettingError: If the rule is unknown, an option has no effect, or there are not enough rows.
    """
    check_partition(name, options)
    rule = PARTITIONS[name]
    if without_classes is not None and rule.needs_classes:
        allowed = ", ".join(other for other, each in PARTITIONS.items() if not each.needs_classes)
        raise SettingError(
            f"data.partition.name={name!r} is not allowed with task.name={without_classes!r}: it divides rows by "
            f"their class; allowed: {allowed}"
        )
    numbers = None if without is None or not len(without) else np.setdiff1d(np.arange(len(labels)), without)
    if rule.divide is None:
        return drawn(len(labels) if numbers is None else len(numbers), num_clients, options, seed, numbers)
    pool = RowPool(labels, num_clients, options, seeding.generator(seed, "partition"), users)
    if numbers is not None:
        own_users = None if users is None else users[numbers]
        pool = replace(pool, labels=labels[numbers], users=own_users, numbers=numbers, num_rows=len(labels))
    fewest = pool.min_examples if "min_examples" in rule.reads else 1
    if num_clients * fewest > len(pool.labels):
        condition = f" with data.partition.min_examples={fewest}" if fewest > 1 else ""
        raise SettingError(
            f"population.clients={num_clients} is too many for {len(pool.labels)} training rows{condition}; "
            f"allowed: 1 to {len(pool.labels) // fewest}"
        )
    parts = rule.divide(pool)
    return to_row_sets(parts if numbers is None else [numbers[part] for part in parts])


def check_partition(name: str, options: PartitionOptions) -> None:
    """Raise SettingError if the rule is unknown, does not read an option, or lacks one."""
    if name not in PARTITIONS:
        raise unknown_name("data.partition.name", name, PARTITIONS)
    rule, given_options = PARTITIONS[name], asdict(options)
    for option, value in given_options.items():
        if value is not None and option not in rule.reads:
            known = ", ".join(nearest_first(option, rule.reads)) or "none"
            raise SettingError(
                f"data.partition.{option}={value!r} has no effect with name={name!r}; allowed: null; "
                f"options it reads: {known}"
            )
    for option in rule.needs:
        if given_options[option] is None:
            raise SettingError(f"data.partition.{option}=null is not allowed with name={name!r}; it must be given")


def drawn(
    num_rows: int, num_clients: int, options: PartitionOptions, seed: int, numbers: Rows | None = None
) -> DrawnRows:
    """Let each client draw `examples_per_client` rows whenever they are needed.

    Args:
        num_rows: Rows to draw from.
        num_clients: Number of clients.
        options: Options of the rule.
        seed: Seed of the experiment.
        numbers: Number of each of these rows in the data set, `(num_rows,)`; None: 0, 1, 2, ...

    Raises:
        SettingError: If there are fewer rows.
    """
    wanted = options.examples_per_client
    if wanted is not None and wanted > num_rows:
        raise SettingError(
            f"data.partition.examples_per_client={wanted} is not allowed with {num_rows} training rows; "
            f"allowed: 1 to {num_rows}"
        )
    examples = min(rules.DEFAULT_DRAWN, num_rows) if wanted is None else wanted
    return DrawnRows(seed, num_clients, num_rows, examples, 0, examples, numbers)


def to_row_sets(parts: list[Rows]) -> RowSets:
    """Sort each client's rows, and store all of them as one array with offsets."""
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    rows = np.concatenate([np.sort(part) for part in parts]).astype(np.int64)
    return RowSets(offsets, rows)


PARTITIONS: dict[str, PartitionRule] = {
    "iid": PartitionRule(rules.iid, reads=("min_examples",)),
    "dirichlet": PartitionRule(rules.dirichlet, reads=("alpha", "min_examples"), needs_classes=True),
    "dirichlet-clients": PartitionRule(rules.dirichlet_clients, reads=("alpha", "min_examples"), needs_classes=True),
    "shards": PartitionRule(rules.shards, reads=("shards_per_client",), needs_classes=True),
    "classes": PartitionRule(rules.classes, reads=("classes_per_client",), needs_classes=True),
    "quantity": PartitionRule(rules.quantity, reads=("alpha", "min_examples")),
    "natural": PartitionRule(given.natural, reads=("min_examples", "path")),
    "file": PartitionRule(given.from_file, reads=("path",), needs=("path",)),
    "resample": PartitionRule(None, reads=("examples_per_client",)),
}
