"""Read data sets from their original files with torchvision."""

from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.errors import SettingError, nearest_first, reason_of
from raysim.data.files import refuse_special
from raysim.data.raw import RawData, Source, images_of

EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")


def mnist(source: Source) -> RawData:
    """Return MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels, 10 digits."""
    return _from_idx(source, "MNIST")


def fashionmnist(source: Source) -> RawData:
    """Return Fashion-MNIST (arXiv 1708.07747): like MNIST, 10 kinds of clothing."""
    return _from_idx(source, "FashionMNIST")


def kmnist(source: Source) -> RawData:
    """Return Kuzushiji-MNIST (arXiv 1812.01718): like MNIST, 10 characters."""
    return _from_idx(source, "KMNIST")


def emnist(source: Source, split: str = "balanced") -> RawData:
    """Return a split of EMNIST (arXiv 1702.05373), letters and digits of 28 x 28 pixels, turned upright.

    The files hold every image transposed. The classes of `letters` are numbered from 1 there and from 0 here.
    """
    if split not in EMNIST_SPLITS:
        known = ", ".join(nearest_first(str(split), EMNIST_SPLITS))
        raise SettingError(f"data.options.split={split!r} is unknown; data.name='emnist' takes: {known}")
    raw = _from_idx(source, "EMNIST", split=split)
    first = 1 if split == "letters" else 0
    train, test = (np.ascontiguousarray(images.swapaxes(2, 3)) for images in images_of(raw)[:2])
    return RawData(train, raw.train_targets - first, test, raw.test_targets - first)


def cifar10(source: Source) -> RawData:
    """Return CIFAR-10 (Krizhevsky, 2009): 50,000 and 10,000 colour images of 32 x 32 pixels."""
    return _from_cifar(source, "CIFAR10", "cifar-10-batches-py")


def cifar100(source: Source) -> RawData:
    """Return CIFAR-100 (Krizhevsky, 2009) with its 100 fine classes."""
    return _from_cifar(source, "CIFAR100", "cifar-100-python")


def svhn(source: Source) -> RawData:
    """Return SVHN (Netzer et al., 2011): 73,257 and 26,032 colour images of house numbers, 32 x 32 pixels."""
    train, test = _opened(source, "SVHN", "train_32x32.mat", [{"split": "train"}, {"split": "test"}])
    arrays = [(np.ascontiguousarray(part.data), part.labels.astype(np.int64)) for part in (train, test)]
    return RawData(*arrays[0], *arrays[1])


def _from_idx(source: Source, what: str, **options: str) -> RawData:
    splits = [{"train": train, **options} for train in (True, False)]
    arrays = [
        (part.data.numpy()[:, None], part.targets.numpy()) for part in _opened(source, what, f"{what}/raw", splits)
    ]
    return RawData(*arrays[0], *arrays[1])


def _from_cifar(source: Source, what: str, folder: str) -> RawData:
    arrays = [
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, dtype=np.int64))
        for part in _opened(source, what, folder, [{"train": True}, {"train": False}])
    ]
    return RawData(*arrays[0], *arrays[1])


def _opened(source: Source, what: str, holds: str, splits: list[dict[str, Any]]) -> list[Any]:
    """Return torchvision's data sets for both splits.

    Raises:
        SettingError: If the folder does not hold the files in their original form.
    """
    from torchvision import datasets

    if source.root is None:
        raise SettingError(
            f"data.root=null is not allowed with data.name={source.name!r}; give the folder that holds {holds}"
        )
    own = Path(source.root) / holds
    refuse_special(own if own.exists() else Path(source.root), f"data.root={source.root!r}")
    try:
        return [getattr(datasets, what)(source.root, download=source.download, **split) for split in splits]
    except Exception as error:  # whatever its readers raise on damaged files
        raise SettingError(
            f"data.root={source.root!r}: {what} cannot be read from {own} ({reason_of(error)}); "
            f"give the folder that holds {holds}, or data.download=true"
        ) from None
