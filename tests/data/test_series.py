"""Time series in a file of NumPy arrays."""

from pathlib import Path

import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.data.splits import DataSplits

RNG = np.random.default_rng(0)
ARRAYS = {
    "train_inputs": RNG.normal((3, -2), (2, 0.5), (12, 5, 2)).transpose(0, 2, 1),
    "train_targets": np.arange(12) % 3,
    "test_inputs": RNG.normal((3, -2), (2, 0.5), (6, 5, 2)).transpose(0, 2, 1),
    "test_targets": np.arange(6) % 3,
    "train_users": np.arange(12) // 4,
}


def load(root: Path | None, task: str = "classification", download: bool = False, **options: object) -> DataSplits:
    return datasets.load("series", None if root is None else str(root), download, None, 0, options, task=task)


def save(folder: Path, **arrays: object) -> Path:
    """A file of the arrays, changed by those given; None: without one."""
    changed = {name: array for name, array in (ARRAYS | arrays).items() if array is not None}
    np.savez(folder / "series.npz", **changed)
    return folder / "series.npz"


def test_channels_are_scaled_by_the_training_rows(tmp_path: Path) -> None:
    data = load(save(tmp_path))
    assert data.input_shape == (2, 5)
    assert data.train_inputs.dtype == np.float32
    for channel in range(2):
        of_train = ARRAYS["train_inputs"][:, channel]
        for split in ("train", "test"):
            expected = (ARRAYS[f"{split}_inputs"][:, channel] - of_train.mean()) / of_train.std()
            np.testing.assert_allclose(getattr(data, f"{split}_inputs")[:, channel], expected, rtol=1e-4, atol=1e-5)
    assert data.train_users.tolist() == ARRAYS["train_users"].tolist()
    assert data.test_targets.tolist() == ARRAYS["test_targets"].tolist()


def test_channels_stay_as_they_are_on_request(tmp_path: Path) -> None:
    data = load(save(tmp_path, train_users=None), normalize=False)
    np.testing.assert_array_equal(data.train_inputs, ARRAYS["train_inputs"].astype(np.float32))
    assert data.train_users is None


def test_counts_and_constant_channels_are_series_too(tmp_path: Path) -> None:
    counts = {name: np.round(ARRAYS[name]).astype(np.int16) for name in ("train_inputs", "test_inputs")}
    counts["train_inputs"][:, 1] = 7
    counts["test_inputs"][:, 1] = 9
    data = load(save(tmp_path, **counts))
    assert data.vocabulary is None
    assert (data.train_inputs[:, 1] == 0).all()
    assert (data.test_inputs[:, 1] == 2).all()


@pytest.mark.parametrize(
    ("task", "shape"),
    [("regression", ()), ("regression", (2,)), ("multilabel", (4,)), ("token-classification", (5,))],
)
def test_targets_are_those_of_the_task(tmp_path: Path, task: str, shape: tuple[int, ...]) -> None:
    targets = {f"{split}_targets": RNG.integers(0, 2, (rows, *shape)) for split, rows in (("train", 12), ("test", 6))}
    data = load(save(tmp_path, **targets), task)
    np.testing.assert_array_equal(data.train_targets.reshape(12, -1), targets["train_targets"].reshape(12, -1))


INFINITE = ARRAYS["train_inputs"].copy()
INFINITE[3, 1, 2] = np.inf


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"test_targets": None}, "has no array 'test_targets'; allowed: train_inputs, train_targets, test_inputs"),
        ({"users": np.zeros(12)}, "has an array 'users', which is not read; nearest: train_users"),
        ({"train_inputs": np.zeros((12, 5))}, r"train_inputs of float64 \(12, 5\) are not allowed; allowed: numbers"),
        ({"test_inputs": np.zeros((6, 3, 5))}, r"train_inputs are float32 \(2, 5\), test_inputs float32 \(3, 5\)"),
        ({"train_inputs": np.full((12, 2, 5), "a")}, "train_inputs of <U1"),
        ({"train_inputs": np.full((12, 2, 5), None)}, "cannot be read: ValueError: Object arrays cannot be loaded"),
        ({"train_inputs": INFINITE}, "hold values that are not finite in float32"),
        ({"train_targets": np.zeros(11, int)}, r"train_targets of int64 \(11,\)"),
        ({"train_targets": np.full(12, 0.5)}, "train_targets of float64"),
        ({"train_users": np.zeros(3, int)}, r"train_users of int64 \(3,\)"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path: Path, arrays: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        load(save(tmp_path, **arrays))


def test_settings_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path)
    with pytest.raises(SettingError, match=r"data.options.normalize='yes' is not allowed; allowed: true, false"):
        load(path, normalize="yes")
    with pytest.raises(SettingError, match=r"data.download=true has no effect with data.name='series'"):
        load(path, download=True)
    for root in (None, tmp_path):
        with pytest.raises(SettingError, match=r"is not allowed with data.name='series'; allowed: an .npz file"):
            load(root)
    with pytest.raises(SettingError, match=r"nothing.npz' cannot be read: No such file"):
        load(tmp_path / "nothing.npz")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(SettingError, match=r"damaged.npz' cannot be read: BadZipFile"):
        load(tmp_path / "damaged.npz")
    np.savez_compressed(tmp_path / "large.npz", **(ARRAYS | {"train_inputs": np.zeros((10_000, 2, 50))}))
    monkeypatch.setattr("raysim.core.memory.total_bytes", lambda: 1_000_000)
    with pytest.raises(SettingError, match=r"large.npz' holds 8,00.* bytes; allowed: at most 250,000"):
        load(tmp_path / "large.npz")
