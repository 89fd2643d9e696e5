"""Transform images once, when they are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from raysim.core import memory
from raysim.core.errors import SettingError
from raysim.data.raw import Images, RawData, images_of

ROWS_AT_A_TIME = 1000
ROWS_IN_CACHE = 100


@dataclass(frozen=True, slots=True)
class Transform:
    """Transforms of images; the fields are those of the `data.transform` settings."""

    normalize: bool = True
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    resize: int | None = None
    pad_to: int | None = None
    grey_to_rgb: bool = False
    augment: Sequence[Mapping[str, Any]] = field(default_factory=list)


def refuse_without_images(name: str, transform: Transform) -> None:
    """Raise SettingError if a transform is set for inputs that are no images."""
    for setting, default in asdict(Transform()).items():
        if (value := getattr(transform, setting)) != default:
            raise SettingError(
                f"data.transform.{setting}={value!r} has no effect: the inputs of data.name={name!r} are no images; "
                f"allowed: {default!r}"
            )


def refuse_with_masks(transform: Transform) -> None:
    """Raise SettingError if a transform would move pixels away from their classes."""
    for setting, default in (("resize", None), ("pad_to", None), ("augment", [])):
        if (value := getattr(transform, setting)) != default:
            raise SettingError(
                f"data.transform.{setting}={value!r} is not allowed with task.name='segmentation': masks are not "
                f"transformed; allowed: {default!r}"
            )


def apply(raw: RawData, transform: Transform) -> RawData:
    """Turn grey into RGB, then resize, then pad: all transforms that are applied once.

    Raises:
        SettingError: If the images are not grey, or larger than `pad_to`.
    """
    _check_size(raw, transform)
    *splits, max_value = images_of(raw)
    train, test = (_apply(images, max_value, transform) for images in splits)
    scaled = transform.resize is not None and train.dtype == np.uint8
    return replace(raw, train_inputs=train, test_inputs=test, max_value=255 if scaled else raw.max_value)


def _check_size(raw: RawData, transform: Transform) -> None:
    """Refuse images that do not fit into memory once they are resized or padded."""
    train, test, _ = images_of(raw)
    for name, pixels in (("resize", transform.resize), ("pad_to", transform.pad_to)):
        channels = 3 if transform.grey_to_rgb else train.shape[1]
        rows = len(train) + len(test)
        if pixels is not None:
            num_bytes = rows * channels * pixels**2 * train.dtype.itemsize
            memory.check_fits(f"data.transform.{name}", pixels, num_bytes)


def _apply(images: Images, max_value: float, transform: Transform) -> Images:
    if transform.grey_to_rgb:
        if images.shape[1] != 1:
            raise SettingError(
                f"data.transform.grey_to_rgb=true is not allowed with images of {images.shape[1]} channels; "
                "allowed: false"
            )
        images = np.repeat(images, 3, axis=1)
    if transform.resize is not None:
        images = _resize_all(images, max_value, transform.resize)
    return images if transform.pad_to is None else padded(images, transform.pad_to)


def _resize_all(images: Images, max_value: float, pixels: int) -> Images:
    """Resize images; bytes are scaled so that 255 is 1.0: resizing makes more grey levels of few."""
    out = np.empty((*images.shape[:2], pixels, pixels), dtype=images.dtype)
    for start in range(0, len(images), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        piece = resized(torch.from_numpy(np.ascontiguousarray(images[rows])).float(), pixels)
        if images.dtype == np.uint8:
            piece = piece.mul_(255 / max_value).round_().clamp_(0, 255)
        out[rows] = piece.numpy().astype(images.dtype)
    return out


def resized(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Resize float images `(rows, channels, h, w)` to `pixels` x `pixels`: bilinear, antialiased."""
    return functional.interpolate(images, (pixels, pixels), mode="bilinear", antialias=True, align_corners=False)


def padded(images: Images, pixels: int) -> Images:
    """Surround images with zeros up to `pixels` in height and width.

    Raises:
        SettingError: If the images are larger than that.
    """
    height, width = images.shape[2:]
    if max(height, width) > pixels:
        raise SettingError(
            f"data.transform.pad_to={pixels} is not allowed with images of {height} x {width}; "
            f"allowed: {max(height, width)} or more"
        )
    above, left = (pixels - height) // 2, (pixels - width) // 2
    return np.pad(images, ((0, 0), (0, 0), (above, pixels - height - above), (left, pixels - width - left)))


def normalization(raw: RawData, transform: Transform) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation to normalise each channel with: given, of the training images, or 0 and 1.

    Raises:
        SettingError: If one of the two is missing, their number is wrong, or they are given without effect.
    """
    images, _, max_value = images_of(raw)
    channels = images.shape[1]
    given = {"mean": transform.mean, "std": transform.std}
    for name, values in given.items():
        if values is not None and not transform.normalize:
            raise SettingError(
                f"data.transform.{name}={list(values)!r} has no effect with normalize=false; allowed: null"
            )
        if (values is None) != (transform.mean is None) or (values is not None and len(values) != channels):
            shown = None if values is None else list(values)
            raise SettingError(
                f"data.transform.{name}={shown!r} is not allowed; allowed: mean and std with {channels} values each, "
                "one per channel, or null for both"
            )
    if not transform.normalize:
        return (0.0,) * channels, (1.0,) * channels
    if transform.mean is not None and transform.std is not None:
        return tuple(transform.mean), tuple(transform.std)
    return moments(images, max_value)


def moments(images: Images, max_value: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel as shares of `max_value`; a constant channel has 1.

    Sums of bytes and of their squares are exact; floats are summed in float64, in pieces.
    """
    total, squares = np.zeros(images.shape[1]), np.zeros(images.shape[1])
    for start in range(0, len(images), ROWS_IN_CACHE):
        piece = images[start : start + ROWS_IN_CACHE].astype(np.float64)
        total += piece.sum((0, 2, 3))
        squares += np.square(piece, out=piece).sum((0, 2, 3))
    count = images.size / images.shape[1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / max_value
    return tuple((mean / max_value).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
