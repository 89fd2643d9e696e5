import numpy as np
import pytest

from raysim.server.levels import FINE, LOWEST, MOST, STEP_BITS, Limb, carried, combined, spread, unit


@pytest.mark.parametrize("exponent", range(-170, 300, 7))
def test_a_term_is_rounded_to_a_millionth_of_itself(exponent: int) -> None:
    term = np.float64(1.37 * 2.0**exponent) / unit(0)
    terms = np.array([term, -term])
    at_0 = np.where(np.abs(terms) < MOST, np.rint(terms), 0.0)
    value = at_0 * unit(0)
    for level, indices, numbers in spread(terms, np.arange(2)):
        assert level >= LOWEST
        assert np.abs(numbers).max() < MOST
        value[indices] += numbers * unit(level)
    np.testing.assert_allclose(value, terms * unit(0), rtol=0.5 / FINE)


def test_a_term_that_level_0_holds_exactly_leaves_nothing() -> None:
    terms = np.array([0.0, 1.0, FINE - 1, FINE, FINE + 0.25, MOST - 2.0**10, -3.0])
    assert not list(spread(terms, np.arange(len(terms))))


def test_the_value_depends_on_the_sum_alone_not_on_the_levels_that_hold_it() -> None:
    numbers = np.array([2**62 - 1, -(2**62) + 1, 12345, -1, 0])
    digits, carry = carried(numbers)
    again, more = carried(carry)
    expected = numbers * unit(0)
    for rows in ({0: numbers}, {0: digits, 1: carry}, {0: digits, 1: again, 2: more}, {0: numbers - (7 << 31), 1: 7}):
        full = {level: np.broadcast_to(row, numbers.shape).astype(np.int64) for level, row in rows.items()}
        np.testing.assert_array_equal(combined(full), expected)
    assert np.abs(digits).max() <= 2 ** (STEP_BITS - 1)


def test_a_limb_holds_pairs_while_they_are_few_and_then_one_number_per_entry() -> None:
    draw, limb, expected = np.random.default_rng(0), Limb(40), np.zeros(40, dtype=np.int64)
    for count in (1, 2, 3, 30, 5):
        indices, numbers = draw.integers(0, 40, count), draw.integers(-9, 9, count)
        before = limb.copy()
        limb.add(indices, numbers)
        np.testing.assert_array_equal(before.dense(), expected)
        np.add.at(expected, indices, numbers)
        np.testing.assert_array_equal(limb.dense(), expected)
        marks = np.zeros(40, dtype=np.bool_)
        limb.mark(marks)
        places = np.flatnonzero(marks)
        np.testing.assert_array_equal(limb.at(places), expected[places])
        assert not expected[~marks].any()
