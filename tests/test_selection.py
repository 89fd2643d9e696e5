import numpy as np
import pytest

from raysim.selection import uniform


@pytest.mark.parametrize("cohort_size", [1, 5, 20])
def test_a_cohort_has_distinct_clients_in_ascending_order(cohort_size):
    cohort = uniform(20, cohort_size, round=1, seed=0)
    assert cohort.shape == (cohort_size,)
    assert (np.diff(cohort) > 0).all()
    assert cohort.min() >= 0
    assert cohort.max() < 20


def test_a_cohort_of_everybody_is_everybody():
    assert uniform(20, 20, round=3, seed=1).tolist() == list(range(20))


def test_round_and_seed_decide_the_cohort():
    cohort = uniform(1000, 30, round=2, seed=0).tolist()
    assert cohort == uniform(1000, 30, round=2, seed=0).tolist()
    assert cohort != uniform(1000, 30, round=3, seed=0).tolist()
    assert cohort != uniform(1000, 30, round=2, seed=1).tolist()


def test_every_client_is_drawn_equally_often():
    rounds = 4000
    drawn = np.bincount(np.concatenate([uniform(10, 3, round, 0) for round in range(1, rounds + 1)]))
    deviation = np.sqrt(rounds * 0.3 * 0.7)
    assert np.abs(drawn - 0.3 * rounds).max() < 4 * deviation
