import numpy as np
import pytest

from raysim.budgets.rules import all_affordable, budgets_of_tiers, halving_level, whole_model
from raysim.population.profiles import DeviceProfile
from raysim.population.sampling import listed


def test_a_device_tells_how_much_it_trains_at_most():
    devices = listed([DeviceProfile("phone", 1e9, 1e6, 1e6)] * 2, [0.3, 1.0])
    found = budgets_of_tiers(devices)
    assert found.keep_ratios.tolist() == [0.3, 1.0]
    assert found.limited_by.tolist() == ["tier", "nothing"]


def test_whole_model_ignores_what_is_affordable():
    assert whole_model(np.array([0.1, 1.0])).tolist() == [1.0, 1.0]


def test_all_affordable_is_just_that():
    assert all_affordable(np.array([0.3, 1.0])).tolist() == [0.3, 1.0]


@pytest.mark.parametrize(
    ("keep_ratio", "level"),
    [(1.0, 1.0), (0.99, 0.5), (0.5, 0.5), (0.3, 0.25), (0.25, 0.25), (0.2, 0.125), (0.0625, 0.0625), (0.01, 0.0625)],
)
def test_halving_level_is_the_widest_of_heterofl_that_fits(keep_ratio, level):
    assert halving_level(np.array([keep_ratio])).tolist() == [level]
