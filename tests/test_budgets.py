import pytest

from raysim.budgets import halving_level, of_tier, whole_model
from raysim.types import Budget, DeviceProfile, Tier


def tier(keep_ratio: float) -> Tier:
    return Tier(DeviceProfile("phone", 1e9, 1e6, 1e6), 1.0, keep_ratio)


@pytest.mark.parametrize("keep_ratio", [0.1, 1.0])
def test_whole_model_ignores_the_tier(keep_ratio):
    assert whole_model(tier(keep_ratio)) == Budget(1.0, "nothing")


def test_of_tier_is_the_tiers_own_ratio():
    assert of_tier(tier(0.3)) == Budget(0.3, "tier")
    assert of_tier(tier(1.0)) == Budget(1.0, "nothing")


@pytest.mark.parametrize(
    ("keep_ratio", "level"),
    [(1.0, 1.0), (0.99, 0.5), (0.5, 0.5), (0.3, 0.25), (0.25, 0.25), (0.2, 0.125), (0.0625, 0.0625), (0.01, 0.0625)],
)
def test_halving_level_is_the_widest_of_heterofl_that_fits(keep_ratio, level):
    assert halving_level(tier(keep_ratio)) == Budget(level, "tier" if level < 1 else "nothing")
