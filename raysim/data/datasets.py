"""Load data sets into memory: the table of names."""

import inspect
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raysim.core import plugins, seeding
from raysim.core.errors import SettingError, nearest_first, unknown_name
from raysim.data import imagefolder, sklearn_sets, synthetic, torchvision_sets
from raysim.data import transform as transforms
from raysim.data.arrays import each
from raysim.data.augment import augmentation
from raysim.data.huggingface import huggingface
from raysim.data.leaf import leaf
from raysim.data.python_source import python_source
from raysim.data.raw import RawData, Source, check_counts, images_of, largest_token, refuse_unread
from raysim.data.returned import raw_from
from raysim.data.series import series
from raysim.data.splits import DataSplits, digest
from raysim.data.stratified import stratified_order
from raysim.data.table import table
from raysim.data.text import text
from raysim.data.transform import Transform
from raysim.task.targets import KINDS, converted


def at_hand(data: DataSplits) -> DataSplits:
    """Return a data set with its rows, loaded from this machine's disk if they were not sent.

    Raises:
        SettingError: If the rows on this disk differ from those that the run was started with.
    """
    if data.on_nodes is None or len(data.train_targets):
        return data
    origin = data.on_nodes
    found = load(
        origin.name,
        origin.root,
        False,
        origin.max_train_examples,
        origin.seed,
        origin.options,
        origin.transform,
        origin.task,
    )
    if found.digest != data.digest:
        raise SettingError(
            f"data.on_nodes=true: {socket.gethostname()} has other data in data.root={origin.root!r}, of digest "
            f"{found.digest}; the run was started with {data.digest}"
        )
    return replace(found, on_nodes=origin)


def load(
    name: str,
    root: str | None,
    download: bool,
    max_train_examples: int | None,
    seed: int,
    options: Mapping[str, Any] | None = None,
    transform: Transform | None = None,
    task: str = "classification",
) -> DataSplits:
    """Load a data set by name or dotted path, transform its images, cut its training rows, and check it.

    Args:
        name: A name of `DATASETS`, or the dotted path of a function that returns what
            `raysim.data.returned.raw_from` describes.
        root: Folder of its files, if it has any.
        download: Whether missing files may be fetched.
        max_train_examples: Training rows to keep; None: all.
        seed: Seed of the experiment.
        options: Keyword arguments of the loader.
        transform: Transforms of the images.
        task: Name of the task, which decides what targets are.

    Raises:
        SettingError: If a setting does not fit the data set, files are missing, or a class has no rows in a split.
    """
    transform = Transform() if transform is None else transform
    source, options = Source(name, root, download, transform.resize, task, seed), dict(options or {})
    check_name(name, options)
    raw = _from_path(source, options) if plugins.is_dotted(name) else DATASETS[name](source, **options)
    check_counts(name, raw)
    if task == "segmentation":
        transforms.refuse_with_masks(transform)
    if raw.max_value is None:
        transforms.refuse_without_images(name, transform)
        data = _splits(name, raw, task)
    else:
        data = _of_images(name, transforms.apply(raw, transform), transform, task)
    if max_train_examples is not None:
        data = stratified_subset(data, max_train_examples, seed)
    if raw.num_outputs is None:
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


def _from_path(source: Source, options: dict[str, Any]) -> RawData:
    """Call a user's function, with `root` and `download` if its signature has them."""
    function = plugins.load("data.name", source.name)
    known = plugins.parameters_of("data.name", source.name, function)
    given: dict[str, Any] = {"root": source.root} if "root" in known else {}
    given |= {"download": source.download} if "download" in known else {}
    refuse_unread(replace(source, download=source.download and "download" not in known), root="root" not in known)
    return raw_from(source.name, plugins.call("data.name", source.name, function, given, options), source.task)


def _splits(name: str, raw: RawData, task: str) -> DataSplits:
    kind, tokens = KINDS[task], (largest_token(raw.train_inputs), largest_token(raw.test_inputs))
    train, test = (
        converted(kind, targets, f"data.name={name!r}: {split}_targets", task)
        for split, targets in (("train", raw.train_targets), ("test", raw.test_targets))
    )
    needed, largest = (
        max(kind.num_outputs(train), kind.num_outputs(test)),
        max((token for token in tokens if token is not None), default=None),
    )
    return DataSplits(
        name,
        raw.train_inputs,
        train,
        raw.test_inputs,
        test,
        max(needed, raw.num_outputs or 0),
        raw.max_value,
        (),
        (),
        train_users=raw.train_users,
        task=task,
        vocabulary=None if largest is None else max(largest + 1, raw.vocabulary or 0),
        class_names=raw.class_names,
    )


def _of_images(name: str, raw: RawData, transform: Transform, task: str) -> DataSplits:
    mean, std = transforms.normalization(raw, transform)
    images, _, max_value = images_of(raw)
    example = torch.from_numpy(images[:2].astype(np.float32)) / max_value
    data = _splits(name, raw, task)
    return replace(data, mean=mean, std=std, augmentation=augmentation(transform.augment, example))


def stratified_subset(data: DataSplits, max_train_examples: int, seed: int) -> DataSplits:
    """Keep a random subset of the training rows; classes keep their shares, and each has a row at least.

    Raises:
        SettingError: If there are fewer rows than that, or more classes.
    """
    rows = len(data.train_targets)
    fewest = len(np.unique(data.strata))
    if not fewest <= max_train_examples <= rows:
        of_classes = "" if data.train_classes is None else " (one per class)"
        raise SettingError(
            f"data.max_train_examples={max_train_examples} is not allowed; allowed: {fewest}{of_classes} to {rows}"
        )
    order = stratified_order(data.strata, seeding.generator(seed, "subset"))
    kept = np.sort(order[:max_train_examples])
    users = None if data.train_users is None else data.train_users[kept]
    inputs = each(lambda array: array[kept], data.train_inputs)
    return replace(data, train_inputs=inputs, train_targets=data.train_targets[kept], train_users=users)


def check_classes(data: DataSplits) -> None:
    """Raise SettingError if a class has no rows in the training or the test split."""
    if data.train_classes is None:
        return
    for split, labels in (("training", data.train_targets), ("test", data.test_targets)):
        missing = np.setdiff1d(np.arange(data.num_classes), labels)
        if len(missing):
            raise SettingError(
                f"data.name={data.name!r}: class {missing[0]} has no row in the {split} split; "
                f"every class from 0 to {data.num_classes - 1} needs one in both splits"
            )


DATASETS: dict[str, Callable[..., RawData]] = {
    "digits": sklearn_sets.digits,
    "digit-masks": sklearn_sets.digit_masks,
    "diabetes": sklearn_sets.diabetes,
    "breast-cancer": sklearn_sets.breast_cancer,
    "mnist": torchvision_sets.mnist,
    "fashionmnist": torchvision_sets.fashionmnist,
    "emnist": torchvision_sets.emnist,
    "kmnist": torchvision_sets.kmnist,
    "cifar10": torchvision_sets.cifar10,
    "cifar100": torchvision_sets.cifar100,
    "svhn": torchvision_sets.svhn,
    "imagefolder": imagefolder.load,
    "huggingface": huggingface,
    "leaf": leaf,
    "noise": synthetic.noise,
    "python-source": python_source,
    "series": series,
    "table": table,
    "text": text,
}
"""Loaders `(source, **options)`; a user's own is a dotted path in the settings."""
