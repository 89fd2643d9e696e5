"""Deals rows to clients: the table of rules, and what holds for all of them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from raysim.core import seeding
from raysim.core.errors import SettingError, nearest_first, unknown_name
from raysim.data import given, rules
from raysim.data.resample import DrawnRows
from raysim.data.row_sets import RowSets
from raysim.data.rules import Deal, PartitionOptions, Rows


@dataclass(frozen=True, slots=True)
class PartitionRule:
    """A rule, the options it reads, and those it cannot do without.

    `deal` returns one array of rows per client, or None where clients draw their rows lazily.
    """

    deal: Callable[[Deal], list[Rows]] | None
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def partition(
    labels: Rows, num_clients: int, name: str, options: PartitionOptions, seed: int, users: Rows | None = None
) -> RowSets | DrawnRows:
    """Deal the training rows to clients, every row to at most one (`resample` apart).

    Args:
        labels: Class of each row, `(num_examples,)`.
        num_clients: How many clients share the rows.
        name: A rule of `PARTITIONS`.
        options: What the rule reads.
        seed: Seed of the experiment.
        users: Natural user of each row, `(num_examples,)`, where the data set knows them.

    Returns:
        The rows of each client, in ascending order.

    Raises:
        SettingError: If the rule is unknown, an option has no effect, or there are not enough rows.
    """
    check_partition(name, options)
    rule = PARTITIONS[name]
    if rule.deal is None:
        return drawn(len(labels), num_clients, options, seed)
    deal = Deal(labels, num_clients, options, seeding.generator(seed, "partition"), users)
    fewest = deal.min_examples if "min_examples" in rule.reads else 1
    if num_clients * fewest > len(labels):
        condition = f" with data.partition.min_examples={fewest}" if fewest > 1 else ""
        raise SettingError(
            f"population.clients={num_clients} is too many for {len(labels)} training rows{condition}; "
            f"allowed: 1 to {len(labels) // fewest}"
        )
    return to_row_sets(rule.deal(deal))


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


def drawn(num_rows: int, num_clients: int, options: PartitionOptions, seed: int) -> DrawnRows:
    """Let each client draw `examples_per_client` rows when it is asked for them.

    Raises:
        SettingError: If that is more than there are.
    """
    wanted = options.examples_per_client
    if wanted is not None and wanted > num_rows:
        raise SettingError(
            f"data.partition.examples_per_client={wanted} is not allowed with {num_rows} training rows; "
            f"allowed: 1 to {num_rows}"
        )
    examples = min(rules.DEFAULT_DRAWN, num_rows) if wanted is None else wanted
    return DrawnRows(seed, num_clients, num_rows, examples, 0, examples)


def to_row_sets(parts: list[Rows]) -> RowSets:
    """Pack one array of rows per client, sorted, into offsets and rows."""
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    rows = np.concatenate([np.sort(part) for part in parts]).astype(np.int64)
    return RowSets(offsets, rows)


PARTITIONS: dict[str, PartitionRule] = {
    "iid": PartitionRule(rules.iid, reads=("min_examples",)),
    "dirichlet": PartitionRule(rules.dirichlet, reads=("alpha", "min_examples")),
    "dirichlet-clients": PartitionRule(rules.dirichlet_clients, reads=("alpha", "min_examples")),
    "shards": PartitionRule(rules.shards, reads=("shards_per_client",)),
    "classes": PartitionRule(rules.classes, reads=("classes_per_client",)),
    "quantity": PartitionRule(rules.quantity, reads=("alpha", "min_examples")),
    "natural": PartitionRule(given.natural, reads=("min_examples", "path")),
    "file": PartitionRule(given.from_file, reads=("path",), needs=("path",)),
    "resample": PartitionRule(None, reads=("examples_per_client",)),
}
