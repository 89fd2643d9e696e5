"""Data sets that come with scikit-learn: patients, and masks of digits."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.data.splits import DataSplits


def load(name: str, task: str, seed: int = 0, root: str | None = None, **options: object) -> DataSplits:
    return datasets.load(name, root, False, None, seed, options, task=task)


@pytest.mark.parametrize(
    ("name", "task", "bunch", "rows"),
    [
        ("diabetes", "regression", load_diabetes(scaled=False), (353, 89)),
        ("breast-cancer", "classification", load_breast_cancer(), (455, 114)),
    ],
)
def test_patients_are_scikit_learns_standardised_by_the_training_rows(name, task, bunch, rows) -> None:
    data = load(name, task)
    assert (len(data.train_targets), len(data.test_targets)) == rows
    np.testing.assert_allclose(data.train_inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_inputs.std(axis=0), 1, atol=1e-5)
    inputs, targets = (
        np.concatenate([getattr(data, f"{split}_{what}") for split in ("train", "test")])
        for what in ("inputs", "targets")
    )
    order, expected_order = np.lexsort(inputs.T), np.lexsort(bunch.data.T)
    by_first, first = np.sort(inputs[:, 0]), np.sort(bunch.data[:, 0])
    scale = (first[-1] - first[0]) / (by_first[-1] - by_first[0])
    np.testing.assert_allclose((by_first - by_first[0]) * scale, first - first[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(targets[order].ravel(), bunch.target[expected_order])
    assert data.digest == load(name, task, seed=3).digest


def test_diabetes_keeps_the_target_as_it_was_measured() -> None:
    data = load("diabetes", "regression")
    assert data.train_targets.shape == (353, 1)
    assert (data.train_targets.min(), data.train_targets.max()) == (25, 346)


def test_breast_cancer_is_split_by_class_and_has_names() -> None:
    data = load("breast-cancer", "classification")
    assert data.class_names == ("malignant", "benign")
    assert np.bincount(data.train_targets).tolist() == [170, 285]


def test_masks_are_the_same_to_the_byte() -> None:
    data = load("digit-masks", "segmentation")
    assert data.train_inputs.shape == (1000, 1, 16, 16)
    assert data.test_targets.shape == (200, 16, 16)
    sha = hashlib.sha256()
    for array in (data.train_inputs, data.train_targets, data.test_inputs, data.test_targets):
        sha.update(array.tobytes())
    assert sha.hexdigest() == "e0ce285496e41a4e81f4100738adc061f5a0962a551a408950a35b726e3e039c"


def scans_at(image: np.ndarray, mask: np.ndarray, scans: np.ndarray, labels: np.ndarray) -> list[int]:
    """The classes of the scans that an image is made of, each found at its place; the rest has to be empty."""
    image, found = image.copy(), []
    wanted = {scan.tobytes(): int(label) for scan, label in zip(scans, labels, strict=True)}
    for top in range(9):
        for left in range(9):
            window = image[top : top + 8, left : left + 8]
            label = wanted.get(window.tobytes())
            if label is not None:
                expected = np.where(window >= 4, label + 1, 0)
                assert (mask[top : top + 8, left : left + 8] == expected).all()
                found.append(label)
                window[:] = 0
    assert not image.any()
    return found


def test_images_are_scans_of_their_split_and_masks_their_ink() -> None:
    bunch, scans = load_digits(), load_digits().images.astype(np.uint8)
    test_scans = {image[0].tobytes() for image in load_digits_of("test")}
    counts = []
    data = load("digit-masks", "segmentation")
    for split in ("train", "test"):
        of_split = np.array([(scan.tobytes() in test_scans) == (split == "test") for scan in scans])
        inputs, targets = getattr(data, f"{split}_inputs"), getattr(data, f"{split}_targets")
        for image, mask in zip(inputs[:100, 0], targets[:100], strict=True):
            counts.append(len(scans_at(image, mask, scans[of_split], bunch.target[of_split])))
    assert set(counts) == {1, 2, 3}


def load_digits_of(split: str) -> np.ndarray:
    return getattr(load("digits", "classification"), f"{split}_inputs")


def test_classes_of_masks_are_the_digits_or_ink() -> None:
    digits, ink = (
        load("digit-masks", "segmentation", classes=classes, train_rows=50) for classes in ("digits", "ink")
    )
    assert (digits.num_classes, ink.num_classes) == (11, 2)
    np.testing.assert_array_equal(ink.train_targets, digits.train_targets > 0)
    np.testing.assert_array_equal(ink.train_inputs, digits.train_inputs)


@pytest.mark.parametrize(
    ("name", "task", "options", "said"),
    [
        (
            "diabetes",
            "classification",
            {},
            "task.name='classification' is not allowed with data.name='diabetes'; all",
        ),
        ("breast-cancer", "regression", {}, "task.name='regression' is not allowed with data.name='breast-cancer'"),
        ("digit-masks", "classification", {}, "is not allowed with data.name='digit-masks'; allowed: segmentation"),
        (
            "digit-masks",
            "segmentation",
            {"classes": "inks"},
            "data.options.classes='inks' is not allowed; allowed: ink",
        ),
        (
            "digit-masks",
            "segmentation",
            {"train_rows": 1},
            "data.options.train_rows=1 is not allowed; allowed: a whole",
        ),
        ("digit-masks", "segmentation", {"test_rows": 1.5}, "data.options.test_rows=1.5 is not allowed"),
        ("digit-masks", "segmentation", {"train_rows": 10**15}, "data.options.train_rows=1000000000000000 needs"),
        ("diabetes", "regression", {"target": "age"}, "data.options.target='age' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name: str, task: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        load(name, task, **options)


@pytest.mark.parametrize(
    ("name", "task"),
    [("diabetes", "regression"), ("breast-cancer", "classification"), ("digit-masks", "segmentation")],
)
def test_a_folder_has_no_effect(name: str, task: str) -> None:
    with pytest.raises(SettingError, match=rf"data.root='here' has no effect with data.name='{name}'"):
        load(name, task, root="here")
