"""Small files in the data sets' original forms, made of real images."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as originals

from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.data.splits import DataSplits
from tests.pickles import Running


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def load(name: str, root: Path, **options: str) -> DataSplits:
    return datasets.load(name, str(root), False, None, 0, options)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_idx_files_are_read(tmp_path, mnist_rows, name):
    images, labels = mnist_rows
    for prefix, rows in (("train", slice(0, 200)), ("t10k", slice(200, 300))):
        write_idx(tmp_path / name / "raw" / f"{prefix}-images-idx3-ubyte", images[rows])
        write_idx(tmp_path / name / "raw" / f"{prefix}-labels-idx1-ubyte", labels[rows])
    data = load(name.lower(), tmp_path)
    assert np.array_equal(data.train_inputs, images[:200, None])
    assert np.array_equal(data.test_targets, labels[200:])
    assert (data.input_shape, data.num_classes, data.train_targets.dtype) == ((1, 28, 28), 10, np.int64)


@pytest.mark.parametrize(("split", "first"), [("balanced", 0), ("letters", 1), ("mnist", 0)])
def test_emnist_is_turned_upright_and_its_letters_count_from_0(tmp_path, mnist_rows, split, first):
    images, labels = mnist_rows
    for part, rows in (("train", slice(0, 200)), ("test", slice(200, 300))):
        path = tmp_path / "EMNIST" / "raw" / f"emnist-{split}-{part}"
        write_idx(path.with_name(f"{path.name}-images-idx3-ubyte"), images[rows].swapaxes(1, 2))
        write_idx(path.with_name(f"{path.name}-labels-idx1-ubyte"), labels[rows] + first)
    data = load("emnist", tmp_path, split=split)
    assert np.array_equal(data.train_inputs, images[:200, None])
    assert np.array_equal(data.train_targets, labels[:200])


def pixels(jpegs: dict[str, list[bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """Return images `(80, 32, 32, 3)` and labels, classes in turn."""
    files = [file for pair in zip(*jpegs.values(), strict=True) for file in pair]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]), np.arange(80) % 2


def write_pickle(path: Path, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def test_cifar10_is_read_from_its_batches(tmp_path, cifar_jpegs, monkeypatch):
    images, labels = pixels(cifar_jpegs)
    rows = images.transpose(0, 3, 1, 2).reshape(80, 3072)
    names = [f"data_batch_{number}" for number in range(1, 6)]
    folder = tmp_path / "cifar-10-batches-py"
    for number, name in enumerate([*names, "test_batch"]):
        part = slice(12 * number, 12 * (number + 1))
        write_pickle(folder / name, data=rows[part], labels=labels[part].tolist())
    write_pickle(folder / "batches.meta", label_names=["airplane", "automobile"])
    monkeypatch.setattr(originals.CIFAR10, "train_list", [[name, None] for name in names])
    monkeypatch.setattr(originals.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setitem(originals.CIFAR10.meta, "md5", None)
    data = load("cifar10", tmp_path)
    assert np.array_equal(data.train_inputs.transpose(0, 2, 3, 1), images[:60])
    assert np.array_equal(data.test_inputs.transpose(0, 2, 3, 1), images[60:72])
    assert data.train_targets.tolist() == labels[:60].tolist()


def test_cifar100_has_its_fine_classes(tmp_path, cifar_jpegs, monkeypatch):
    images, labels = pixels(cifar_jpegs)
    rows = images.transpose(0, 3, 1, 2).reshape(80, 3072)
    folder = tmp_path / "cifar-100-python"
    for name, part in (("train", slice(0, 60)), ("test", slice(60, 80))):
        fine = labels[part].tolist()
        write_pickle(folder / name, data=rows[part], fine_labels=fine, coarse_labels=[7] * len(fine))
    write_pickle(folder / "meta", fine_label_names=["airplane", "automobile"])
    for member, name in (("train_list", "train"), ("test_list", "test")):
        monkeypatch.setattr(originals.CIFAR100, member, [[name, None]])
    monkeypatch.setitem(originals.CIFAR100.meta, "md5", None)
    data = load("cifar100", tmp_path)
    assert np.array_equal(data.test_inputs.transpose(0, 2, 3, 1), images[60:])
    assert (data.num_classes, data.input_shape) == (2, (3, 32, 32))


def test_svhn_is_read_from_its_matrices(tmp_path, cifar_jpegs, monkeypatch):
    from scipy.io import savemat

    images, labels = pixels(cifar_jpegs)
    listed = {}
    for split, part in (("train", slice(0, 60)), ("test", slice(60, 80))):
        name = f"{split}_32x32.mat"
        digits = np.where(labels[part] == 0, 10, labels[part])[:, None]  # the files call the digit 0 "10"
        savemat(tmp_path / name, {"X": images[part].transpose(1, 2, 3, 0), "y": digits})
        listed[split] = ["", name, None]
    monkeypatch.setattr(originals.SVHN, "split_list", listed)
    data = load("svhn", tmp_path)
    assert np.array_equal(data.train_inputs.transpose(0, 2, 3, 1), images[:60])
    assert np.array_equal(data.test_targets, labels[60:])


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("fashionmnist", "FashionMNIST/raw"), ("kmnist", "KMNIST/raw"), ("emnist", "EMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"), ("svhn", "train_32x32.mat"),
    ],
)  # fmt: skip
def test_a_folder_without_the_files_is_refused(tmp_path, name, holds):
    with pytest.raises(SettingError) as refused:
        load(name, tmp_path)
    message = str(refused.value)
    assert message.startswith(f"data.root={str(tmp_path)!r}: ")
    assert message.endswith(f"give the folder that holds {holds}, or data.download=true")
    with pytest.raises(SettingError, match=rf"data\.root=null is not allowed with data\.name='{name}'"):
        datasets.load(name, None, False, None, 0)


def test_an_unknown_split_of_emnist_names_the_nearest(tmp_path):
    with pytest.raises(SettingError, match=r"data\.options\.split='leters' is unknown; .* takes: letters, "):
        load("emnist", tmp_path, split="leters")


@pytest.mark.parametrize(
    ("data", "place"), [("cifar10", "cifar-10-batches-py/data_batch_1"), ("cifar100", "cifar-100-python/train")]
)
def test_a_pickle_in_the_place_of_a_known_data_set_is_not_read(tmp_path, data, place) -> None:
    """Torchvision reads pickles of CIFAR, but only those whose digests it knows."""
    mark, file = tmp_path / "run", tmp_path / place
    file.parent.mkdir()
    file.write_bytes(pickle.dumps(Running(mark)))
    with pytest.raises(SettingError, match="cannot be read"):
        datasets.load(data, str(tmp_path), False, None, 0)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_never_opened(tmp_path, mnist_rows, name):
    images, labels = mnist_rows
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", labels)
    file = tmp_path / "MNIST" / "raw" / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(SettingError, match=rf"{name}' is a named pipe; allowed: regular files"):
        load("mnist", tmp_path)
    file.unlink()
    file.write_bytes(b"\x00\x00")
    with pytest.raises(SettingError, match=r"MNIST cannot be read from .*MNIST/raw \("):
        load("mnist", tmp_path)


def test_images_and_labels_of_unequal_number_are_refused(tmp_path, mnist_rows):
    images, labels = mnist_rows
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", labels[:250])
    with pytest.raises(SettingError, match="has 300 train inputs and 250 targets for them"):
        load("mnist", tmp_path)
