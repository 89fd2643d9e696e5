"""Data sets as arrays in memory."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raysim import seeding
from raysim.errors import SettingError, unknown_name


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images and labels, split into training and test rows.

    Attributes:
        name: Name of the data set.
        train_images: `(rows, channels, height, width)`, unsigned bytes.
        train_labels: `(rows,)`, classes from 0.
        test_images: Like `train_images`.
        test_labels: Like `train_labels`.
        num_classes: Number of classes.
        max_value: Byte value that stands for 1.0.
        mean: Mean of each channel of the training images, in [0, 1].
        std: Standard deviation of each channel.
        digest: Hash of all of the above.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    num_classes: int
    max_value: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height, width."""
        return tuple(self.train_images.shape[1:])

    def train_rows(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised training inputs `(len(rows), channels, height, width)` and labels."""
        return self._batch(self.train_images[rows], self.train_labels[rows])

    def test_rows(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised test inputs and labels."""
        return self._batch(self.test_images[rows], self.test_labels[rows])

    def augmented(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return a training batch, changed at random where that is asked for."""
        return inputs

    def _batch(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, len(self.mean), 1, 1)
        inputs = torch.from_numpy(images).float().div_(self.max_value)
        inputs.sub_(torch.tensor(self.mean).view(shape)).div_(torch.tensor(self.std).view(shape))
        return inputs, torch.from_numpy(labels)


def load(
    name: str,
    root: str | None,
    download: bool,
    max_train_examples: int | None,
    seed: int,
    pad_to: int | None = None,
) -> Dataset:
    """Load a data set by name, pad its images and cut its training rows where asked, and check it.

    Raises:
        SettingError: If the name is unknown, files are missing, the images are larger than `pad_to`, or a
            class has no rows in a split.
    """
    check_name(name)
    data = DATASETS[name](root, download)
    if pad_to is not None:
        data = padded(data, pad_to)
    if max_train_examples is not None:
        data = stratified_subset(data, max_train_examples, seed)
    check_classes(data)
    return replace(data, digest=digest(data))


def padded(data: Dataset, pixels: int) -> Dataset:
    """Surround all images with zeros up to `pixels` in height and width.

    Raises:
        SettingError: If the images are larger than that.
    """
    _, height, width = data.input_shape
    if max(height, width) > pixels:
        raise SettingError(
            f"data.pad_to={pixels} is not allowed with images of {height} x {width}; "
            f"allowed: {max(height, width)} or more"
        )
    above, left = (pixels - height) // 2, (pixels - width) // 2
    borders = ((0, 0), (0, 0), (above, pixels - height - above), (left, pixels - width - left))
    train, test = (np.pad(images, borders) for images in (data.train_images, data.test_images))
    return _dataset(data.name, train, data.train_labels, test, data.test_labels, data.max_value)


def check_name(name: str) -> None:
    """Raise SettingError if there is no data set of this name."""
    if name not in DATASETS:
        raise unknown_name("data.name", name, DATASETS)


def digits(root: str | None, download: bool) -> Dataset:
    """Return scikit-learn's 1,797 real scans of digits, 8 x 8 pixels of 0 to 16, split 80 : 20 by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if root is not None:
        raise SettingError(f"data.root={root!r} has no effect with data.name='digits'; allowed: null")
    if download:
        raise SettingError("data.download=true has no effect with data.name='digits'; allowed: false")
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=0)
    labels = bunch.target.astype(np.int64)
    return _dataset("digits", images[train], labels[train], images[test], labels[test], max_value=16)


def mnist(root: str | None, download: bool) -> Dataset:
    """Return MNIST, 60,000 training and 10,000 test images of 28 x 28 pixels, read by torchvision."""
    from torchvision.datasets import MNIST

    if root is None:
        raise SettingError(
            "data.root=null is not allowed with data.name='mnist'; give the folder that holds MNIST/raw"
        )
    try:
        train, test = (MNIST(root, train=train, download=download) for train in (True, False))
    except (RuntimeError, OSError) as error:
        where = Path(root) / "MNIST" / "raw"
        raise SettingError(
            f"data.root={root!r}: MNIST cannot be read from {where} ({error}); "
            "give the folder that holds MNIST/raw, or data.download=true"
        ) from None
    return _dataset(
        "mnist", train.data.numpy()[:, None], train.targets.numpy(),
        test.data.numpy()[:, None], test.targets.numpy(), max_value=255,
    )  # fmt: skip


def _dataset(
    name: str, train_images: NDArray[np.uint8], train_labels: NDArray[np.int64],
    test_images: NDArray[np.uint8], test_labels: NDArray[np.int64], max_value: int,
) -> Dataset:  # fmt: skip
    axes = (0, 2, 3)
    mean = train_images.mean(axes) / max_value
    std = train_images.std(axes) / max_value
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    return Dataset(
        name, train_images, train_labels, test_images, test_labels, num_classes, max_value,
        tuple(mean.tolist()), tuple(std.tolist()),
    )  # fmt: skip


def stratified_subset(data: Dataset, max_train_examples: int, seed: int) -> Dataset:
    """Keep a random subset of the training rows with the classes in their original shares, each at least once.

    Raises:
        SettingError: If there are fewer rows than asked for, or more classes.
    """
    rows = len(data.train_labels)
    if not data.num_classes <= max_train_examples <= rows:
        raise SettingError(
            f"data.max_train_examples={max_train_examples} is not allowed; "
            f"allowed: {data.num_classes} (one per class) to {rows}"
        )
    shuffled = seeding.generator(seed, "subset").permutation(rows)
    labels = data.train_labels[shuffled]
    rank_in_class = np.empty(rows)
    for label in range(data.num_classes):
        members = np.flatnonzero(labels == label)
        rank_in_class[members] = np.arange(len(members)) / len(members)
    kept = np.sort(shuffled[np.argsort(rank_in_class, kind="stable")[:max_train_examples]])
    return replace(data, train_images=data.train_images[kept], train_labels=data.train_labels[kept])


def check_classes(data: Dataset) -> None:
    """Raise SettingError if a class has no rows in the training or the test split."""
    for split, labels in (("training", data.train_labels), ("test", data.test_labels)):
        missing = np.setdiff1d(np.arange(data.num_classes), labels)
        if len(missing):
            raise SettingError(
                f"data.name={data.name!r}: class {missing[0]} has no row in the {split} split; "
                f"every class from 0 to {data.num_classes - 1} needs one in both splits"
            )


def digest(data: Dataset) -> str:
    """Return the SHA-256 of all images and labels."""
    sha = hashlib.sha256()
    for array in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


DATASETS: dict[str, Callable[[str | None, bool], Dataset]] = {"digits": digits, "mnist": mnist}
