"""Transform training images at random, each image by itself."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core import seeding
from raysim.core.errors import SettingError, nearest_first, shortened

Pixels = NDArray[np.float32]
"""`(rows, channels, height, width)`."""
MAX_ARGUMENT = 10_000
"""Largest number among the arguments of an augmentation: most of them are pixels, which are allocated squared."""
ImageTransform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Flip:
    """Mirrors images.

    Attributes:
        axis: Of `(channels, height, width)`: 1 is upside down, 2 left to right.
        probability: Share of the images that are mirrored.
    """

    axis: int
    probability: float

    def drawn(self, rng: np.random.Generator, rows: int) -> list[bool]:
        """Draw which images are mirrored, `(rows,)`."""
        return list((rng.random(rows) < self.probability).tolist())

    def of(self, image: Pixels) -> Pixels:
        """Return a mirrored view of an image `(channels, height, width)`."""
        return image[:, ::-1] if self.axis == 1 else image[:, :, ::-1]


@dataclass(frozen=True, slots=True)
class Crop:
    """Pads images and cuts pieces of their own size out of them.

    Attributes:
        before: Rows and columns of the border above and to the left.
        room: Rows and columns of the whole border, over which pieces may start.
        fill: Value of the border in each channel, or in all.
    """

    before: tuple[int, int]
    room: tuple[int, int]
    fill: tuple[float, ...]

    def drawn(self, rng: np.random.Generator, rows: int) -> list[tuple[int, int]]:
        """Draw how far down and to the right each image's piece starts, `(rows,)` pairs."""
        starts = [
            rng.integers(0, room + 1, rows) - before for room, before in zip(self.room, self.before, strict=True)
        ]
        return list(zip(starts[0].tolist(), starts[1].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Moves:
    """Flips and at most one crop, which copy each image once."""

    moves: tuple[Flip | Crop, ...]

    def __call__(self, images: Pixels, rng: np.random.Generator, border: Callable[[Pixels], Pixels]) -> Pixels:
        """Return moved images; `border` turns values in [0, 1], `(1, channels, 1, 1)`, into those of the images."""
        drawn = [move.drawn(rng, len(images)) for move in self.moves]
        moved = np.empty(images.shape, dtype=images.dtype)
        for move in self.moves:
            if isinstance(move, Crop):
                fill = np.broadcast_to(np.array(move.fill, dtype=np.float32), images.shape[1:2])
                moved[:] = border(fill.reshape(1, -1, 1, 1))
        for source, target, draws in zip(images, moved, zip(*drawn, strict=True), strict=True):
            self._move(source, target, draws)
        return moved

    def _move(self, source: Pixels, target: Pixels, draws: Sequence[Any]) -> None:
        """Write an image into another: flips before the crop turn the first, those after it the second."""
        start, is_cropped = (0, 0), False
        for move, draw in zip(self.moves, draws, strict=True):
            if isinstance(move, Crop):
                start, is_cropped = draw, True
            elif draw and is_cropped:
                target = move.of(target)
            elif draw:
                source = move.of(source)
        (rows, columns), (into_rows, into_columns) = zip(
            *(_overlap(first, size) for first, size in zip(start, source.shape[1:], strict=True)), strict=True
        )
        target[:, into_rows, into_columns] = source[:, rows, columns]


def _overlap(start: int, size: int) -> tuple[slice, slice]:
    """Return which pixels of a line are in a piece of its length that begins at `start`, and where they lie there."""
    length, first = max(size - abs(start), 0), max(start, 0)
    return slice(first, first + length), slice(first - start, first - start + length)


@dataclass(frozen=True, slots=True, eq=False)
class ImageByImage:
    """Applies a transform of torchvision to one image after another."""

    transform: ImageTransform

    def __call__(self, images: Pixels, rng: np.random.Generator, border: Callable[[Pixels], Pixels]) -> Pixels:
        """Return transformed images; torch's default generator, from which torchvision draws, is seeded for them."""
        with seeding.torch_seeded(int(rng.integers(2**62)), "augmentation"):
            found: Pixels = torch.stack([self.transform(image) for image in torch.from_numpy(images)]).numpy()
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Augmentation:
    """Random transforms of images, one after another, each drawn anew for every image.

    Attributes:
        specs: The entries of `data.transform.augment`.
        passes: The transforms that they name; flips and a crop in a row are one.
    """

    specs: tuple[Mapping[str, Any], ...]
    passes: tuple[Moves | ImageByImage, ...]

    def __call__(self, inputs: torch.Tensor, mean: Pixels, std: Pixels, rng: np.random.Generator) -> torch.Tensor:
        """Transform normalised images `(rows, channels, height, width)`.

        The transforms see values in [0, 1], so that a border of zeros is black and brightness means brightness.
        Flips and crops work on normalised values, which they only move.

        Args:
            inputs: The images.
            mean: Value that was subtracted from each channel, `(1, channels, 1, 1)`.
            std: Value by which each channel was then divided.
            rng: Its draws decide all transforms.
        """
        images: Pixels = inputs.cpu().numpy()
        only_moves = all(isinstance(each, Moves) for each in self.passes)
        images = images if only_moves else images * std + mean
        for each in self.passes:
            images = each(images, rng, (lambda value: (value - mean) / std) if only_moves else (lambda value: value))
        return torch.from_numpy(images if only_moves else (images - mean) / std).to(inputs.device)


def augmentation(specs: Sequence[Mapping[str, Any]], example: torch.Tensor) -> Augmentation | None:
    """Build the transforms of `data.transform.augment` and try them.

    Args:
        specs: Each with the `name` of a class in `torchvision.transforms.v2` and its keyword arguments.
        example: A batch of float images in [0, 1], `(rows, channels, height, width)`.

    Raises:
        SettingError: If a name or an argument is not allowed, or a transform changes the images' shape.
    """
    passes: list[Moves | ImageByImage] = []
    for index, spec in enumerate(specs):
        setting = f"data.transform.augment.{index}"
        transform = _build(setting, spec)
        _try(f"{setting}={dict(spec)!r}", transform, example)
        move = _move_of(spec, tuple(example.shape[1:]))
        before = passes[-1] if passes else None
        if move is None:
            passes.append(ImageByImage(transform))
        elif isinstance(before, Moves) and (isinstance(move, Flip) or not _has_crop(before)):
            passes[-1] = Moves((*before.moves, move))
        else:
            passes.append(Moves((move,)))
    return Augmentation(tuple(dict(spec) for spec in specs), tuple(passes)) if specs else None


def _has_crop(moves: Moves) -> bool:
    return any(isinstance(move, Crop) for move in moves.moves)


def _move_of(spec: Mapping[str, Any], shape: tuple[int, ...]) -> Flip | Crop | None:
    """Return a checked transform as a move of pixels; None: it is another one, or has other options."""
    given = {key: value for key, value in spec.items() if key != "name"}
    if spec["name"] in ("RandomHorizontalFlip", "RandomVerticalFlip"):
        return Flip(2 if spec["name"] == "RandomHorizontalFlip" else 1, float(given.get("p", 0.5)))
    if spec["name"] != "RandomCrop" or not given.keys() <= {"size", "padding", "fill"}:
        return None
    padding, fill = (_numbers(given.get(name) or 0) for name in ("padding", "fill"))
    if len(padding) not in (1, 2, 4) or any(value < 0 for value in padding) or len(fill) not in (1, shape[0]):
        return None
    left, above, right, below = (padding * 4)[:4] if len(padding) < 4 else padding
    return Crop((int(above), int(left)), (int(above + below), int(left + right)), tuple(map(float, fill)))


def _numbers(value: Any) -> tuple[float, ...]:
    """Return a number, or numbers, as a tuple; empty where it is something else."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values if all(type(each) in (int, float) for each in values) else ()


def _build(setting: str, spec: Mapping[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    from torchvision.transforms import v2

    known = [
        name for name, member in vars(v2).items() if isinstance(member, type) and issubclass(member, v2.Transform)
    ]
    name = spec.get("name")
    if name not in known:
        nearest = ", ".join(nearest_first(str(name), known)[:5])
        raise SettingError(
            f"{setting}.name={name!r} is unknown; allowed: a class of torchvision.transforms.v2; nearest: {nearest}"
        )
    arguments = {key: value for key, value in spec.items() if key != "name"}
    for number in numbers_in(arguments.values()):
        if not abs(number) <= MAX_ARGUMENT:
            raise SettingError(f"{setting}={shortened(dict(spec))}; allowed: numbers up to {MAX_ARGUMENT:,}")
    try:
        if isinstance(arguments.get("interpolation"), str):
            arguments["interpolation"] = v2.InterpolationMode(arguments["interpolation"])
        transform: Callable[[torch.Tensor], torch.Tensor] = getattr(v2, str(name))(**arguments)
    except Exception as error:
        raise SettingError(f"{setting}={dict(spec)!r} is not allowed: {error}") from None
    return transform


def numbers_in(values: Iterable[Any]) -> Iterator[float]:
    """Yield all numbers in nested lists and dicts."""
    for value in values:
        if isinstance(value, (list, tuple, dict)):
            yield from numbers_in(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, (int, float)):
            yield value


def _try(what: str, transform: ImageTransform, example: torch.Tensor) -> None:
    try:
        with seeding.torch_seeded(0, "try augmentation"):
            out = [transform(image.clone()) for image in example]
    except Exception as error:
        raise SettingError(f"{what} is not allowed on float images: {error}") from None
    for image in out:
        if not isinstance(image, torch.Tensor) or image.shape != example.shape[1:] or not image.is_floating_point():
            is_tensor = isinstance(image, torch.Tensor)
            form = f"{image.dtype} {tuple(image.shape)}" if is_tensor else type(image).__name__
            raise SettingError(
                f"{what} is not allowed: it turns float images {tuple(example.shape[1:])} into {form}; "
                "allowed: transforms that keep form and shape"
            )
