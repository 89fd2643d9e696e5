"""Load data sets into memory: the table of names, and the record that clients train from."""

import hashlib
import inspect
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core import plugins, seeding
from raysim.core.errors import SettingError, nearest_first, unknown_name
from raysim.data import imagefolder, synthetic, torchvision_sets
from raysim.data import transform as transforms
from raysim.data.augment import Augmentation, augmentation
from raysim.data.raw import Images, Labels, RawImages, Source, check_counts, from_arrays, refuse_unread
from raysim.data.stratified import stratified_order
from raysim.data.transform import Transform


@dataclass(frozen=True, slots=True)
class Origin:
    """How a data set was loaded, so that another process can load it from its own disk: the arguments of `load`."""

    name: str
    root: str | None
    max_train_examples: int | None
    seed: int
    options: Mapping[str, Any]
    transform: Transform


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images and labels, split into training and test rows.

    Attributes:
        name: Name of the data set.
        train_images: `(rows, channels, height, width)`, unsigned bytes or floats.
        train_labels: `(rows,)`, classes from 0.
        test_images: Like `train_images`.
        test_labels: Like `train_labels`.
        num_classes: Number of classes.
        max_value: Value that stands for 1.0.
        mean: Value that is subtracted from each channel after scaling to [0, 1].
        std: Value by which each channel is then divided.
        digest: Hash of all that clients train on.
        train_users: Natural user of each training row, `(rows,)`; None: the data set has no users.
        augmentation: Random transforms of images in training.
        on_nodes: How other processes load it from their own disk; None: its rows are sent to them.
    """

    name: str
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    num_classes: int
    max_value: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""
    train_users: Labels | None = None
    augmentation: Augmentation | None = None
    on_nodes: Origin | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height, width."""
        return tuple(self.train_images.shape[1:])

    def without_rows(self) -> "Dataset":
        """Return what is sent to other processes: the data set itself, or how they load it."""
        if self.on_nodes is None:
            return self
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, train_users=None, **{name: getattr(self, name)[:0] for name in names})

    def at_hand(self) -> "Dataset":
        """Return the data set with its rows, loaded from this machine's disk if they were not sent.

        Raises:
            SettingError: If the rows on this disk differ from those that the run was started with.
        """
        if self.on_nodes is None or len(self.train_labels):
            return self
        origin = self.on_nodes
        found = load(
            origin.name, origin.root, False, origin.max_train_examples, origin.seed, origin.options, origin.transform
        )
        if found.digest != self.digest:
            raise SettingError(
                f"data.on_nodes=true: {socket.gethostname()} has other data in data.root={origin.root!r}, of digest "
                f"{found.digest}; the run was started with {self.digest}"
            )
        return replace(found, on_nodes=origin)

    def train_rows(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised training inputs `(len(rows), channels, height, width)` and labels."""
        return self._batch(self.train_images[rows], self.train_labels[rows])

    def test_rows(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised test inputs and labels."""
        return self._batch(self.test_images[rows], self.test_labels[rows])

    def augmenter(self, seed: int, round: int, client: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Return a function that transforms batches of a client's normalised inputs at random; None: there is none.

        Its draws depend on (seed, round, client) and on the batches before, for each image anew.
        """
        if self.augmentation is None:
            return None
        mean, std = (each.numpy() for each in self._normalization())
        rng = seeding.generator(seed, "augmentation", round, client)
        return partial(self.augmentation, mean=mean, std=std, rng=rng)

    def _batch(self, images: Images, labels: Labels) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = self._normalization()
        inputs = torch.from_numpy(images).float().div_(self.max_value)
        return inputs.sub_(mean).div_(std), torch.from_numpy(labels)

    def _normalization(self) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, len(self.mean), 1, 1)
        return torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)


def load(
    name: str,
    root: str | None,
    download: bool,
    max_train_examples: int | None,
    seed: int,
    options: Mapping[str, Any] | None = None,
    transform: Transform | None = None,
) -> Dataset:
    """Load a data set by name or dotted path, transform its images, cut its training rows, and check it.

    Args:
        name: A name of `DATASETS`, or the dotted path of a function that returns a `Dataset` or the arrays that
            `raysim.data.raw.from_arrays` describes.
        root: Folder of its files, if it has any.
        download: Whether missing files may be fetched.
        max_train_examples: Training rows to keep; None: all.
        seed: Seed of the experiment.
        options: Keyword arguments of the loader.
        transform: Transforms of the images.

    Raises:
        SettingError: If a setting does not fit the data set, files are missing, or a class has no rows in a split.
    """
    transform = Transform() if transform is None else transform
    source, options = Source(name, root, download, transform.resize), dict(options or {})
    check_name(name, options)
    raw = _from_path(source, options) if plugins.is_dotted(name) else DATASETS[name](source, **options)
    check_counts(name, raw)
    data = _dressed(name, transforms.apply(raw, transform), transform)
    if max_train_examples is not None:
        data = stratified_subset(data, max_train_examples, seed)
    check_classes(data)
    return replace(data, digest=digest(data))


def check_name(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise SettingError if there is no data set of this name, or it does not take an option."""
    if plugins.is_dotted(name):
        plugins.load("data.name", name)
        return
    if name not in DATASETS:
        raise unknown_name("data.name", name, DATASETS)
    known = list(inspect.signature(DATASETS[name]).parameters)[1:]
    for option, value in (options or {}).items():
        if option not in known:
            allowed = ", ".join(nearest_first(option, known)) or "none"
            raise SettingError(f"data.options.{option}={value!r} is unknown; data.name={name!r} takes: {allowed}")


def digits(source: Source) -> RawImages:
    """Return scikit-learn's 1,797 real scans of digits, 8 x 8 pixels of 0 to 16, split 80 : 20 by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    refuse_unread(source)
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=0)
    labels = bunch.target.astype(np.int64)
    return RawImages(images[train], labels[train], images[test], labels[test], max_value=16)


def _from_path(source: Source, options: dict[str, Any]) -> RawImages:
    """Call a user's function, with `root` and `download` if its signature has them."""
    function = plugins.load("data.name", source.name)
    known = plugins.parameters_of("data.name", source.name, function)
    given: dict[str, Any] = {"root": source.root} if "root" in known else {}
    given |= {"download": source.download} if "download" in known else {}
    refuse_unread(replace(source, download=source.download and "download" not in known), root="root" not in known)
    result = plugins.call("data.name", source.name, function, given, options)
    if isinstance(result, Dataset):
        arrays = (result.train_images, result.train_labels, result.test_images, result.test_labels)
        users = () if result.train_users is None else (result.train_users,)
        return replace(from_arrays(source.name, (*arrays, *users)), max_value=result.max_value)
    if not isinstance(result, (tuple, list)):
        raise SettingError(
            f"data.name={source.name!r} gives a {type(result).__name__}; allowed: a raysim Dataset, or "
            "(train_images, train_labels, test_images, test_labels)"
        )
    return from_arrays(source.name, result)


def _dressed(name: str, raw: RawImages, transform: Transform) -> Dataset:
    mean, std = transforms.normalization(raw, transform)
    num_classes = int(max(raw.train_labels.max(), raw.test_labels.max())) + 1
    example = torch.from_numpy(raw.train_images[:2].astype(np.float32)) / raw.max_value
    return Dataset(
        name,
        raw.train_images,
        raw.train_labels,
        raw.test_images,
        raw.test_labels,
        num_classes,
        raw.max_value,
        mean,
        std,
        train_users=raw.train_users,
        augmentation=augmentation(transform.augment, example),
    )


def stratified_subset(data: Dataset, max_train_examples: int, seed: int) -> Dataset:
    """Keep a random subset of the training rows with the classes in their original shares, each at least once.

    Raises:
        SettingError: If there are fewer rows than that, or more classes.
    """
    rows = len(data.train_labels)
    if not data.num_classes <= max_train_examples <= rows:
        raise SettingError(
            f"data.max_train_examples={max_train_examples} is not allowed; "
            f"allowed: {data.num_classes} (one per class) to {rows}"
        )
    order = stratified_order(data.train_labels, seeding.generator(seed, "subset"))
    kept = np.sort(order[:max_train_examples])
    users = None if data.train_users is None else data.train_users[kept]
    images, labels = data.train_images[kept], data.train_labels[kept]
    return replace(data, train_images=images, train_labels=labels, train_users=users)


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
    """Return the SHA-256 of images, labels, users, normalization and augmentation."""
    specs = () if data.augmentation is None else data.augmentation.specs
    sha = hashlib.sha256(repr((data.num_classes, data.max_value, data.mean, data.std, specs)).encode())
    users = np.empty(0) if data.train_users is None else data.train_users
    for array in (data.train_images, data.train_labels, data.test_images, data.test_labels, users):
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


DATASETS: dict[str, Callable[..., RawImages]] = {
    "digits": digits,
    "mnist": torchvision_sets.mnist,
    "fashionmnist": torchvision_sets.fashionmnist,
    "emnist": torchvision_sets.emnist,
    "kmnist": torchvision_sets.kmnist,
    "cifar10": torchvision_sets.cifar10,
    "cifar100": torchvision_sets.cifar100,
    "svhn": torchvision_sets.svhn,
    "imagefolder": imagefolder.load,
    "noise": synthetic.noise,
}
"""Loaders `(source, **options)`; a user's own is a dotted path in the settings."""
