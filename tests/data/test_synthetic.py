import pytest

from raysim.core.errors import SettingError
from raysim.data import datasets


def test_noise_is_always_the_same_and_has_the_shape_that_is_asked_for() -> None:
    options = {"shape": [1, 4, 6], "classes": 3, "train_rows": 9, "test_rows": 5}
    data = datasets.load("noise", None, False, None, 0, options)
    assert data.train_inputs.shape == (9, 1, 4, 6)
    assert data.test_targets.tolist() == [0, 1, 2, 0, 1]
    assert data.digest == datasets.load("noise", None, False, None, 7, options).digest


@pytest.mark.parametrize(
    ("option", "value"),
    [("shape", [3, 32]), ("shape", [0, 8, 8]), ("classes", 0), ("train_rows", "many"), ("classes", 50)],
)
def test_noise_of_no_size_is_refused(option: str, value: object) -> None:
    options = {"train_rows": 20, "test_rows": 20, option: value}
    with pytest.raises(SettingError, match=rf"data.options.{option}=.*allowed: "):
        datasets.load("noise", None, False, None, 0, options)
