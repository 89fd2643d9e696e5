import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.data.splits import DataSplits
from tests.conftest import SHARED_DATA


def digits(max_train_examples: int | None = None, seed: int = 0) -> DataSplits:
    return datasets.load("digits", None, False, max_train_examples, seed)


def test_digits_are_real_scans_split_by_class():
    data = digits()
    assert data.train_inputs.shape == (1437, 1, 8, 8)
    assert data.test_inputs.shape == (360, 1, 8, 8)
    assert (data.num_classes, data.max_value, data.input_shape) == (10, 16, (1, 8, 8))
    assert data.train_inputs.max() == 16
    shares = np.bincount(data.test_targets) / (np.bincount(data.test_targets) + np.bincount(data.train_targets))
    assert np.abs(shares - 0.2).max() < 0.01


def test_digits_in_the_two_splits_are_all_of_scikit_learns():
    from sklearn.datasets import load_digits

    data = digits()
    found = np.concatenate([data.train_inputs, data.test_inputs]).reshape(-1, 64)
    labels = np.concatenate([data.train_targets, data.test_targets])
    whole = load_digits()
    order, expected_order = np.lexsort(found.T), np.lexsort(whole.data.T)
    assert np.array_equal(found[order], whole.data[expected_order])
    assert np.array_equal(labels[order], whole.target[expected_order])


def test_digits_have_one_split_whatever_the_seed():
    assert digits().digest == digits().digest == digits(seed=7).digest


def test_the_digest_is_of_images_and_labels():
    data = digits()
    labels = data.train_targets.copy()
    labels[0] = (labels[0] + 1) % 10
    images = data.test_inputs.copy()
    images[-1, 0, 7, 7] += 1
    others = [replace(data, train_targets=labels), replace(data, test_inputs=images)]
    assert len({data.digest, *(datasets.digest(other) for other in others)}) == 3
    assert datasets.digest(data) == data.digest


def test_training_inputs_have_mean_zero_and_deviation_one():
    inputs, labels = digits().train_rows(np.arange(1437))
    assert inputs.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(inputs.double().mean().item()) < 1e-6
    assert inputs.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_test_inputs_are_normalised_by_the_training_images():
    data = digits()
    inputs, labels = data.test_rows(np.array([3, 0]))
    expected = (data.test_inputs[[3, 0]] / 16 - data.mean[0]) / data.std[0]
    assert np.allclose(inputs.numpy(), expected, atol=1e-6)
    assert labels.tolist() == data.test_targets[[3, 0]].tolist()


def test_a_subset_keeps_the_shares_of_the_classes():
    data, subset = digits(), digits(max_train_examples=200)
    assert len(subset.train_targets) == len(subset.train_inputs) == 200
    expected = np.bincount(data.train_targets) * 200 / 1437
    assert np.abs(np.bincount(subset.train_targets) - expected).max() <= 1
    assert np.array_equal(subset.test_inputs, data.test_inputs)


def test_a_subset_is_made_of_the_training_rows():
    data, subset = digits(), digits(max_train_examples=50)
    known = {(image.tobytes(), label) for image, label in zip(data.train_inputs, data.train_targets, strict=True)}
    assert {(i.tobytes(), y) for i, y in zip(subset.train_inputs, subset.train_targets, strict=True)} <= known


def test_a_subset_depends_on_the_seed():
    assert digits(200).digest == digits(200).digest
    assert digits(200).digest != digits(200, seed=1).digest


def test_a_subset_of_all_rows_is_the_whole():
    assert digits(1437).digest == digits().digest


@pytest.mark.parametrize("wanted", [9, 1438])
def test_a_subset_without_every_class_or_beyond_the_data_is_refused(wanted):
    message = rf"data\.max_train_examples={wanted} is not allowed; allowed: 10 \(one per class\) to 1437"
    with pytest.raises(SettingError, match=message):
        digits(wanted)


@pytest.mark.parametrize("wanted", [10, 1427, 1428, 1436])
def test_every_allowed_size_of_a_subset_works(wanted):
    subset = digits(wanted)
    assert len(subset.train_targets) == wanted
    assert len(np.unique(subset.train_targets)) == 10


def test_a_class_missing_from_a_split_is_refused():
    data = digits()
    train, test = data.train_targets != 4, data.test_targets != 9
    without_four = replace(data, train_inputs=data.train_inputs[train], train_targets=data.train_targets[train])
    without_nine = replace(data, test_inputs=data.test_inputs[test], test_targets=data.test_targets[test])
    datasets.check_classes(data)
    with pytest.raises(SettingError, match=r"data\.name='digits': class 4 has no row in the training split"):
        datasets.check_classes(without_four)
    with pytest.raises(SettingError, match=r"data\.name='digits': class 9 has no row in the test split"):
        datasets.check_classes(without_nine)


def test_an_unknown_data_set_names_the_nearest_first():
    with pytest.raises(SettingError, match=r"data\.name='mnst' is unknown; known: mnist, emnist, "):
        datasets.load("mnst", None, False, None, 0)


def test_settings_that_digits_do_not_read_are_refused():
    with pytest.raises(SettingError, match=r"data\.root='/data' has no effect with data\.name='digits'"):
        datasets.load("digits", "/data", False, None, 0)


def test_a_download_of_digits_is_refused():
    with pytest.raises(SettingError, match=r"data\.download"):
        datasets.load("digits", None, True, None, 0)


def test_mnist_without_its_files_is_refused(tmp_path):
    with pytest.raises(SettingError) as refused:
        datasets.load("mnist", str(tmp_path), False, None, 0)
    message = str(refused.value)
    assert message.startswith(f"data.root={str(tmp_path)!r}: MNIST cannot be read from {tmp_path}/MNIST/raw")
    assert message.endswith("give the folder that holds MNIST/raw, or data.download=true")
    with pytest.raises(SettingError, match=r"data\.root=null is not allowed with data\.name='mnist'"):
        datasets.load("mnist", None, False, None, 0)


@pytest.mark.skipif(
    not (SHARED_DATA / "MNIST" / "raw").is_dir(), reason="the files of MNIST are not beside the checkout"
)
def test_mnist_is_read_from_its_files():
    data = datasets.load("mnist", str(SHARED_DATA), False, 2000, 0)
    assert data.train_inputs.shape == (2000, 1, 28, 28)
    assert data.test_inputs.shape == (10000, 1, 28, 28)
    assert (data.num_classes, data.max_value) == (10, 255)
    assert data.mean[0] == pytest.approx(0.1307, abs=1e-4)
    assert data.std[0] == pytest.approx(0.3081, abs=1e-4)
    assert np.bincount(data.train_targets).min() > 150


@pytest.fixture
def users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_data_xyz.py").write_text(USERS_CODE, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("my_data_xyz", None)


USERS_CODE = """
import numpy as np
from sklearn.datasets import load_digits
from raysim.data import datasets

BUNCH = load_digits()
IMAGES = (BUNCH.images / 16)

def floats(rows=1000):
    return IMAGES[:rows], BUNCH.target[:rows], IMAGES[rows:], BUNCH.target[rows:], np.arange(rows) % 7

def ready(root):
    return datasets.load("digits", None, False, None, 0)

def one_array():
    return IMAGES

def three():
    return IMAGES, BUNCH.target, IMAGES

def halves():
    return IMAGES, BUNCH.target / 2, IMAGES, BUNCH.target

def whole():
    return BUNCH.images.astype(int), BUNCH.target, IMAGES, BUNCH.target

def last():
    return np.zeros((10, 8, 8, 3)), BUNCH.target[:10], np.zeros((10, 8, 8, 3)), BUNCH.target[:10]

def holes():
    return np.full((10, 8, 8), np.nan), BUNCH.target[:10], IMAGES, BUNCH.target

def short():
    return IMAGES, BUNCH.target[:-1], IMAGES, BUNCH.target

def unlike():
    return IMAGES, BUNCH.target, IMAGES[:, 1:], BUNCH.target

def missing():
    return IMAGES, BUNCH.target, IMAGES[:3], BUNCH.target[:3]
"""


def test_a_users_own_data_set_is_arrays_from_a_function(users_folder):
    data = datasets.load("my_data_xyz:floats", None, False, None, 0, {"rows": 1200})
    assert (data.input_shape, len(data.train_targets), data.max_value) == ((1, 8, 8), 1200, 1)
    assert data.train_inputs.dtype == np.float32
    assert data.train_users.tolist()[:9] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    inputs, _ = data.train_rows(np.arange(1200))
    assert abs(inputs.mean().item()) < 1e-5
    assert inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    cut = datasets.load("my_data_xyz:floats", None, False, 50, 0)
    assert len(cut.train_users) == 50


def test_a_users_function_may_return_a_data_set_and_take_the_folder(users_folder):
    data = datasets.load("my_data_xyz:ready", "/any", False, None, 0)
    assert (data.name, data.max_value, data.num_classes) == ("my_data_xyz:ready", 16, 10)
    assert np.array_equal(data.train_inputs, digits().train_inputs)
    assert data.mean == digits().mean


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one_array", "gives a ndarray; allowed: two raysim.Dataset"),
        ("three", "gives 3 arrays; allowed: 4"),
        ("halves", r"train_targets of float64 \(1797,\) are not allowed; allowed: whole numbers from 0"),
        ("whole", r"train_inputs of int64 \(1797, 1, 8, 8\) are not allowed; allowed: \(rows, channels"),
        ("last", "seem to have their channels last"),
        ("holes", "hold values that are not finite"),
        ("short", "train_targets of int64"),
        ("unlike", "they must be alike"),
        ("missing", "class 3 has no row in the test split"),
        ("flotas", "has no 'flotas'; nearest: floats"),
    ],
)
def test_arrays_of_another_form_are_refused(users_folder, name, said):
    with pytest.raises(SettingError, match=said) as refused:
        datasets.load(f"my_data_xyz:{name}", None, False, None, 0)
    assert str(refused.value).startswith(f"data.name='my_data_xyz:{name}'")


def test_what_a_users_function_does_not_take_is_refused(users_folder):
    with pytest.raises(SettingError, match=r"data\.options=\{'row': 3\} is not allowed .*unexpected keyword"):
        datasets.load("my_data_xyz:floats", None, False, None, 0, {"row": 3})
    with pytest.raises(SettingError, match=r"data\.root='/any' has no effect"):
        datasets.load("my_data_xyz:floats", "/any", False, None, 0)
    with pytest.raises(SettingError, match=r"data\.download=true has no effect"):
        datasets.load("my_data_xyz:ready", "/any", True, None, 0)


def test_an_option_of_no_loader_is_refused():
    with pytest.raises(SettingError, match=r"data\.options\.splt='x' is unknown; data\.name='emnist' takes: split"):
        datasets.load("emnist", "/any", False, None, 0, {"splt": "x"})
    with pytest.raises(SettingError, match=r"data\.options\.split='x' is unknown; data\.name='digits' takes: none"):
        datasets.load("digits", None, False, None, 0, {"split": "x"})
