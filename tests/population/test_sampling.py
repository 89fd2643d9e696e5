import numpy as np
import pytest

from raysim.population.profiles import DeviceProfile, Tier
from raysim.population.sampling import assign_tiers, lognormal_factors


def tiers(*shares: float) -> tuple[Tier, ...]:
    return tuple(Tier(DeviceProfile(f"t{index}", 1, 1, 1), share, 1.0) for index, share in enumerate(shares))


@pytest.mark.parametrize(
    ("shares", "num_clients", "counts"),
    [
        ((0.2, 0.3, 0.3, 0.2), 60, [12, 18, 18, 12]),
        ((0.5, 0.3, 0.2), 7, [4, 2, 1]),  # 3.5, 2.1, 1.4: the remainder of 0.5 is the largest
        ((0.5, 0.5), 3, [2, 1]),  # equal remainders: the first
        ((0.29, 0.71), 100, [29, 71]),  # 0.29 x 100 is a little under 29 in floating point
        ((0.9, 0.1), 1, [1, 0]),
        ((1.0,), 5, [5]),
    ],
)
def test_clients_are_dealt_by_largest_remainder(shares, num_clients, counts):
    tier_of = assign_tiers(tiers(*shares), num_clients, seed=0)
    assert np.bincount(tier_of, minlength=len(shares)).tolist() == counts


def test_the_seed_decides_who_gets_which_tier_but_not_how_many():
    first, second = (assign_tiers(tiers(0.4, 0.6), 50, seed) for seed in (0, 1))
    assert np.array_equal(first, assign_tiers(tiers(0.4, 0.6), 50, 0))
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first), np.sort(second))
    assert not np.array_equal(first, np.sort(first))


@pytest.mark.parametrize("std", [0.05, 0.4, 1.0])
def test_lognormal_factors_have_mean_one_and_the_deviation_asked_for(std):
    normal = np.random.Generator(np.random.PCG64(0)).standard_normal(1_000_000)
    factors = lognormal_factors(np.full(len(normal), std), normal)
    assert factors.min() > 0
    assert factors.mean() == pytest.approx(1, abs=0.005)
    assert factors.std() == pytest.approx(std, rel=0.02)


def test_lognormal_factors_are_exactly_one_without_variation():
    assert (lognormal_factors(np.zeros(3), np.array([-2.0, 0.0, 5.0])) == 1).all()


def test_lognormal_factors_match_a_hand_computed_value():
    # a deviation of sqrt(e - 1) has log-variance 1, so the factor at z is exp(z - 1/2)
    factors = lognormal_factors(np.full(2, np.sqrt(np.e - 1)), np.array([0.5, 1.5]))
    assert factors == pytest.approx([1.0, np.e])
