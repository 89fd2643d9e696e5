"""Draw training rows with the classes in their shares: a subset, and the rows that validate."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.core.errors import SettingError


def stratified_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return all rows in a random order of which every first part has the classes in their shares.

    A first part with at least as many rows as there are classes has each class at least once.

    Args:
        labels: Class of each row, `(rows,)`.
        rng: Draws the order.
    """
    shuffled = rng.permutation(len(labels))
    drawn = labels[shuffled]
    rank_in_class = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(drawn == label)
        rank_in_class[members] = np.arange(len(members)) / len(members)
    return np.asarray(shuffled[np.argsort(rank_in_class, kind="stable")])


def validation_rows(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Return the training rows that validate: about `share` of each class, in ascending order.

    They are the last of a stratified order, so that every class keeps a row to train on; a class with fewer rows than
    1 / `share` may have none among them.

    Args:
        labels: Class of each training row, `(rows,)`.
        share: Their share of the rows, rounded to a whole number of rows, at least one; 0: none.
        seed: Seed of the split.

    Raises:
        SettingError: If some class would keep no row to train on.
    """
    if share == 0:
        return np.empty(0, np.int64)
    wanted, most = max(1, round(share * len(labels))), len(labels) - len(np.unique(labels))
    if wanted > most:
        raise SettingError(
            f"data.validation_share={share:g} is not allowed: it takes {wanted} of {len(labels)} training rows, and "
            f"each class needs one to train on; allowed: 0 to {most / len(labels):.4g}"
        )
    order = stratified_order(labels, seeding.generator(seed, "validation rows"))
    return np.sort(order[len(order) - wanted :])


def rows_to_test(
    labels: NDArray[np.int64], share: float, seed: int, what: str, names: Sequence[str] = ()
) -> NDArray[np.int64]:
    """Return the rows of a data set without test rows that are tested: a share of each class, in ascending order.

    Of each class with two rows or more, at least one is tested and at least one is not.

    Args:
        labels: Class of each row, `(rows,)`.
        share: Their share of each class, rounded to whole rows.
        seed: Seed of the split.
        what: The setting that the classes come from, for messages.
        names: Names of the classes; empty: they are numbers.

    Raises:
        SettingError: If a class has one row.
    """
    shuffled = seeding.generator(seed, "test rows").permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    if sizes.min() < 2:
        label = int(labels[by_class][starts[sizes.argmin()]])
        raise SettingError(
            f"{what}: class {names[label] if names else label!r} has one row, which cannot be both trained on and "
            "tested; allowed: two rows or more of each class"
        )
    counts = np.clip(np.round(share * sizes).astype(np.int64), 1, sizes - 1)
    chosen = [by_class[start : start + count] for start, count in zip(starts, counts, strict=True)]
    return np.sort(np.concatenate(chosen))
