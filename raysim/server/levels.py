"""Levels of fixed-point numbers: each holds terms of a range of magnitudes to a millionth of the term."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

UNIT_BITS = 44
"""Level 0 counts in units of 2^-44."""
STEP_BITS = 31
"""The unit of a level is 2^31 times that of the level below."""
MOST = 2.0**57
"""A term of more units goes to a level above."""
FINE = 2.0**20
"""A term of fewer units is not rounded to a millionth of itself: what the rounding leaves goes to the level below."""
LOWEST = -5
"""The lowest level: terms down to 1e-54 are rounded to a millionth of themselves."""
HIGHEST = 30
LARGEST = MOST * 2.0 ** (STEP_BITS * HIGHEST)
"""Units of level 0 from which on a term is too large (1e283)."""

Numbers = NDArray[np.int64]


def unit(level: int) -> float:
    """Return the unit of a level.

    >>> unit(0) == 2.0**-44, unit(1) / unit(0) == 2.0**31
    (True, True)
    """
    return 2.0 ** (STEP_BITS * level - UNIT_BITS)


def spread(terms: NDArray[np.float64], indices: Numbers) -> Iterator[tuple[int, Numbers, Numbers]]:
    """Yield the parts of terms at other levels than 0: a level, indices and whole numbers of its unit.

    The parts of a term depend on the term alone, so that sums depend neither on order nor on grouping.

    Args:
        terms: In units of level 0, `(terms,)`; those that level 0 holds well enough have no other part.
        indices: Where each belongs, `(terms,)`.
    """
    is_large = np.abs(terms) >= MOST
    yield from _above(terms[is_large], indices[is_large])
    yield from _below(terms[~is_large], indices[~is_large])


def _above(terms: NDArray[np.float64], indices: Numbers) -> Iterator[tuple[int, Numbers, Numbers]]:
    level = 0
    while len(terms):
        level += 1
        terms = terms * 2.0**-STEP_BITS
        fits = np.abs(terms) < MOST
        if fits.any():
            yield level, indices[fits], np.rint(terms[fits]).astype(np.int64)
        terms, indices = terms[~fits], indices[~fits]


def _below(terms: NDArray[np.float64], indices: Numbers) -> Iterator[tuple[int, Numbers, Numbers]]:
    rests, level = terms - np.rint(terms), 0
    while level > LOWEST:
        left = (np.abs(terms) < FINE) & (rests != 0)
        if not left.any():
            return
        level -= 1
        terms, rests, indices = terms[left] * 2.0**STEP_BITS, rests[left] * 2.0**STEP_BITS, indices[left]
        numbers = np.rint(rests)
        rests = rests - numbers
        counts = numbers != 0
        if counts.any():
            yield level, indices[counts], numbers[counts].astype(np.int64)


def carried(numbers: Numbers) -> tuple[Numbers, Numbers]:
    """Split numbers of a level into digits from -2^30 up to 2^30, and what they carry to the level above."""
    carry = (numbers + 2 ** (STEP_BITS - 1)) >> STEP_BITS
    return numbers - (carry << STEP_BITS), carry


def combined(rows: dict[int, Numbers]) -> NDArray[np.float64]:
    """Return the value of numbers at several levels, which depends on their sum alone.

    Args:
        rows: Numbers by level, `(entries,)` each.
    """
    level, digits, carry = min(rows), {}, np.zeros(1, dtype=np.int64)
    while level <= max(rows) or carry.any():
        digits[level], carry = carried(rows[level] + carry if level in rows else carry)
        level += 1
    value = np.zeros(len(rows[min(rows)]))
    for level in sorted(digits, reverse=True):
        value += digits[level] * unit(level)
    return value


class Limb:
    """Sums of a tensor's terms at one level: pairs of index and number while they are few, else one per entry."""

    def __init__(self, size: int, dense: Numbers | None = None, indices: Numbers | None = None) -> None:
        """Keep numbers that are there already.

        Args:
            size: Entries of the tensor.
            dense: `(size,)`, or with indices `(numbers,)`. None: there are none.
            indices: Where each of the numbers belongs; one may occur several times.
        """
        self._size = size
        self._dense = dense if indices is None else None
        self._pairs = [(indices, dense)] if indices is not None and dense is not None else []

    def add(self, indices: Numbers, numbers: Numbers) -> None:
        """Add numbers; an index may occur several times."""
        if self._dense is not None:
            np.add.at(self._dense, indices, numbers)
            return
        self._pairs.append((indices, numbers))
        if sum(len(indices) for indices, _ in self._pairs) > self._size // 4:
            self._dense, self._pairs = self.dense(), []

    def merge(self, other: "Limb") -> None:
        """Add the numbers of a limb of the same size; its memory is not kept."""
        if other._dense is not None:
            self._dense, self._pairs = self.dense() + other._dense, []
        for indices, numbers in other._pairs:
            self.add(indices.copy(), numbers.copy())

    def dense(self) -> Numbers:
        """Return the number of each entry, `(size,)`."""
        if self._dense is not None:
            return self._dense
        total = np.zeros(self._size, dtype=np.int64)
        for indices, numbers in self._pairs:
            np.add.at(total, indices, numbers)
        return total

    def take_carry(self) -> tuple[Numbers, Numbers]:
        """Keep the digits alone; return what they carry to the level above: indices and numbers."""
        self._dense, carry = carried(self.dense())
        self._pairs = []
        indices = np.flatnonzero(carry)
        return indices, carry[indices]

    def mark(self, marks: NDArray[np.bool_]) -> None:
        """Mark the entries, `(size,)`, that have a number."""
        if self._dense is not None:
            marks |= self._dense != 0
        for indices, _ in self._pairs:
            marks[indices] = True

    def at(self, indices: Numbers) -> Numbers:
        """Return the numbers of some entries, in ascending order, among which are all that have one."""
        if self._dense is not None:
            return np.asarray(self._dense[indices])
        found = np.zeros(len(indices), dtype=np.int64)
        for own, numbers in self._pairs:
            np.add.at(found, np.searchsorted(indices, own), numbers)
        return found

    def copy(self) -> "Limb":
        """Return a limb with memory of its own."""
        copied = Limb(self._size)
        copied.merge(self)
        return copied

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle few arrays, which Ray moves without a copy."""
        if not self._pairs:
            return Limb, (self._size, self._dense)
        indices, numbers = (np.concatenate(parts) for parts in zip(*self._pairs, strict=True))
        return Limb, (self._size, numbers, indices)
