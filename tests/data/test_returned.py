"""What a user's function may return as a data set."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import raysim
from raysim.core.errors import SettingError
from raysim.data.partition import partition
from raysim.data.returned import raw_from
from raysim.data.rules import PartitionOptions

RNG = np.random.default_rng(0)
VECTORS, CLASSES = RNG.random((12, 3)), np.arange(12) % 3
TOKENS = np.arange(60).reshape(12, 5) % 7
IMAGES = RNG.integers(0, 256, (12, 1, 4, 4), dtype=np.uint8)


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index >= 12:
            raise IndexError
        return torch.from_numpy(VECTORS)[index], int(CLASSES[index])


FORMS: dict[str, Callable[[], object]] = {
    "data sets": lambda: (raysim.Dataset(VECTORS, CLASSES), raysim.Dataset(VECTORS, CLASSES)),
    "pairs": lambda: ((VECTORS, CLASSES), (VECTORS, CLASSES)),
    "four arrays": lambda: (VECTORS, CLASSES, VECTORS, CLASSES),
    "five arrays": lambda: (VECTORS, CLASSES, VECTORS, CLASSES, CLASSES),
    "by name": lambda: {
        "train_inputs": VECTORS,
        "train_targets": CLASSES,
        "test_inputs": VECTORS,
        "test_targets": CLASSES,
    },
    "splits by name": lambda: {"train": (VECTORS, CLASSES), "test": (VECTORS, CLASSES)},
    "columns": lambda: {split: {"label": CLASSES, "vector": VECTORS} for split in ("train", "test")},
    "of PyTorch": lambda: (Pairs(), Pairs()),
    "lists": lambda: (VECTORS.tolist(), CLASSES.tolist(), VECTORS.tolist(), CLASSES.tolist()),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_form_are_the_same(form: str) -> None:
    found = raw_from("mine", FORMS[form](), "classification")
    np.testing.assert_array_equal(found.train_inputs, VECTORS.astype(np.float32))
    np.testing.assert_array_equal(found.train_targets, CLASSES)
    assert found.max_value is None
    assert (found.train_users is not None) == (form == "five arrays")


def splits(inputs: object, targets: object, users: object = None) -> tuple[raysim.Dataset, raysim.Dataset]:
    return raysim.Dataset(inputs, targets, users), raysim.Dataset(inputs, targets)


TARGETS = {
    "classification": (CLASSES, "int64", (12,)),
    "multilabel": (RNG.integers(0, 2, (12, 4)), "float32", (12, 4)),
    "regression": (RNG.random(12), "float32", (12, 1)),
    "next-token": (np.where(TOKENS > 3, -100, TOKENS), "int64", (12, 5)),
    "token-classification": (TOKENS, "int64", (12, 5)),
    "segmentation": (np.zeros((12, 4, 4), np.uint8), "int64", (12, 4, 4)),
}


@pytest.mark.parametrize("task", TARGETS)
def test_each_task_has_targets_of_its_own(task: str) -> None:
    given, dtype, shape = TARGETS[task]
    found = raw_from("mine", splits(VECTORS, given), task).train_targets
    assert (str(found.dtype), found.shape) == (dtype, shape)
    np.testing.assert_allclose(found.reshape(np.shape(given)), given, rtol=1e-6)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("other", TARGETS)
def test_targets_of_another_task_are_refused_in_one_line(task: str, other: str) -> None:
    fits = {
        ("regression", "classification"),
        ("regression", "multilabel"),
        ("next-token", "token-classification"),
        ("token-classification", "next-token"),
        ("next-token", "multilabel"),
        ("token-classification", "multilabel"),
        ("regression", "next-token"),
        ("regression", "token-classification"),
    }
    if task == other or (task, other) in fits:
        raw_from("mine", splits(VECTORS, TARGETS[other][0]), task)
        return
    with pytest.raises(SettingError, match=r"^data.name='mine': train_targets of .* are not allowed.*; allowed: "):
        raw_from("mine", splits(VECTORS, TARGETS[other][0]), task)


def test_texts_may_be_classes_and_users() -> None:
    names = np.array(["dog", "cat", "owl"])[CLASSES]
    found = raw_from("mine", splits(VECTORS, names, [f"u{index % 2}" for index in range(12)]), "classification")
    assert found.class_names == ("cat", "dog", "owl")
    assert found.train_targets.tolist() == np.array([1, 0, 2])[CLASSES].tolist()
    assert found.train_users.tolist() == [0, 1] * 6


def test_several_inputs_keep_their_names() -> None:
    found = raw_from(
        "mine", splits({"tokens": TOKENS, "image": IMAGES, "vector": VECTORS}, CLASSES), "classification"
    )
    assert {name: str(array.dtype) for name, array in found.train_inputs.items()} == {
        "tokens": "int64",
        "image": "uint8",
        "vector": "float32",
    }
    assert found.max_value is None


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a number": (lambda: 3, "gives a int; allowed: two raysim.Dataset"),
    "unknown names": (lambda: {"train": 1, "tset": 2}, r"gives a mapping with \['train', 'tset'\]; allowed: test"),
    "no targets": (
        lambda: {split: {"vector": VECTORS} for split in ("train", "test")},
        r"the train split has the columns \['vector'\]; allowed: inputs, and one of targets",
    ),
    "unequal sequences": (lambda: splits([[1, 2], [3]], [0, 1]), "train_inputs are no array"),
    "negative tokens": (lambda: splits(TOKENS - 1, CLASSES), "hold -1 to 5; allowed: token ids from 0"),
    "names that are no arguments": (lambda: splits({"a b": TOKENS}, CLASSES), r"have the names \['a b'\]"),
    "inputs of unequal length": (lambda: splits({"a": TOKENS, "b": VECTORS[:3]}, CLASSES), "'a': 12, 'b': 3"),
    "one number a row": (lambda: splits(np.arange(12.0), CLASSES), r"are not allowed; allowed: floats \(rows, ...\)"),
    "unlike splits": (
        lambda: (raysim.Dataset(VECTORS, CLASSES), raysim.Dataset(TOKENS, CLASSES)),
        r"train_inputs are float32 \(3,\), test_inputs int64 \(5,\); they must be alike",
    ),
    "too few targets": (lambda: splits(VECTORS, CLASSES[:5]), r"train_targets of int64 \(5,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_set_is_refused(case: str) -> None:
    make, said = REFUSED[case]
    with pytest.raises(SettingError, match=rf"^data.name='mine'.*{said}"):
        raw_from("mine", make(), "classification")


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet-clients", "shards", "classes"])
def test_rules_that_divide_by_class_need_classes(name: str) -> None:
    with pytest.raises(
        SettingError, match=rf"data.partition.name='{name}' is not allowed with task.name='regression'"
    ):
        partition(np.zeros(12, np.int64), 2, name, PartitionOptions(), 0, without_classes="regression")
    for other in ("iid", "quantity"):
        partition(np.zeros(12, np.int64), 2, other, PartitionOptions(), 0, without_classes="regression")
