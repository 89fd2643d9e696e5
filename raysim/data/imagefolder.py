"""Read a folder of image files: decode them once, and keep one array with a digest of the file list."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, reason_of, refusing
from raysim.core.storage import atomic
from raysim.data.files import regular
from raysim.data.raw import RawData, Source, refuse_unread
from raysim.data.transform import resized

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's `ImageFolder`, in lower or upper case."""
THREADS = 8
"""Decoders at a time; Pillow decodes outside Python's lock, and opening small files waits for the disk."""
PER_TASK = 500
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "PPM", "WEBP", "TIFF", "GIF")
"""Formats that are decoded, whatever a file's name says; Pillow would start programs for some of the others."""
WIDEST_GREY = 2**16 - 1
"""Value of grey images of more than 8 bits that stands for white."""
Pixels = NDArray[Any]
"""Unsigned bytes, or float32 in [0, 1]; `(height, width)` or `(height, width, 3)`."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file of a class."""

    path: Path
    class_name: str


def load(source: Source) -> RawData:
    """Read `train/<class>/**` and `test/<class>/**` under a folder; classes are numbered by sorted name.

    Files are those of torchvision's `ImageFolder`: of all folders below a class's own, links followed, sorted.

    Images are decoded once. The array is kept beside the folder (`<folder>.raysim.npz`) or, if that is not
    writable, in the user's cache folder, together with a digest of all names, sizes and modification times: a
    changed folder is decoded anew. If all images are grey they stay grey, else all become RGB. Images of unequal
    size are resized to `data.transform.resize`.

    Images of 8 bits a channel become bytes. If some are grey images of more bits or of floats, all become float32 in
    [0, 1]: 16 bits are divided by 65,535, 32-bit integers, too, and must be within 16 bits; floats stay as they are.

    Raises:
        SettingError: If the folder or a class is missing, or a file is no image that can be read so.
    """
    refuse_unread(source, root=False)
    if source.root is None:
        raise SettingError(
            "data.root=null is not allowed with data.name='imagefolder'; give the folder that holds train/<class>/* "
            "and test/<class>/*"
        )
    root = Path(source.root)
    listed = {split: list(_files(root, split)) for split in ("train", "test")}
    _check_classes(root, listed)
    digest = _digest_of(root, listed)
    arrays = _cached(root, digest, source.resize)
    if arrays is None:
        arrays, equal = _decoded(root, listed, source.resize)
        _keep(root, {**arrays, "digest": np.array(digest), "resize": np.array(0 if equal else source.resize)})
    classes = sorted({file.class_name for file in listed["train"]})
    labels = [np.array([classes.index(file.class_name) for file in listed[split]]) for split in ("train", "test")]
    max_value = 255 if arrays["train"].dtype == np.uint8 else 1
    return RawData(arrays["train"], labels[0], arrays["test"], labels[1], max_value)


def _files(root: Path, split: str) -> Iterator[ImageFile]:
    if not (root / split).is_dir():
        raise SettingError(
            f"data.root={str(root)!r}: there is no folder {split!r} in it; allowed: a folder that holds "
            "train/<class>/* and test/<class>/*"
        )
    with refusing(f"data.root={str(root)!r}: {split!r} cannot be listed"):
        for folder in sorted(path for path in (root / split).iterdir() if path.is_dir()):
            for path, names in sorted(_folders(root, folder, {})):
                images = sorted(name for name in names if name.lower().endswith(SUFFIXES))
                yield from (ImageFile(Path(path, name), folder.name) for name in images)


def _folders(root: Path, folder: Path, above: Mapping[tuple[int, int], Path]) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and all below it, links followed, with the names of what else is in each.

    Raises:
        SettingError: If a link leads back to a folder that it is in.
    """
    found = folder.stat()
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        raise SettingError(
            f"data.root={str(root)!r}: {str(folder)!r} leads back to {str(above[identity])!r}; allowed: folders "
            "that do not hold themselves"
        )
    entries = list(folder.iterdir())
    folders = [entry for entry in entries if entry.is_dir()]
    yield str(folder), [entry.name for entry in entries if entry not in folders]
    for below in folders:
        yield from _folders(root, below, {**above, identity: folder})


def _check_classes(root: Path, listed: dict[str, list[ImageFile]]) -> None:
    train, test = ({file.class_name for file in listed[split]} for split in ("train", "test"))
    if not train:
        raise SettingError(f"data.root={str(root)!r}: no image in train/<class>; allowed: {', '.join(SUFFIXES)}")
    for name in sorted(train ^ test):
        split = "test" if name in train else "train"
        raise SettingError(
            f"data.root={str(root)!r}: class {name!r} has no image in {split!r}; every class needs one"
        )


def _digest_of(root: Path, listed: dict[str, list[ImageFile]]) -> str:
    sha = hashlib.sha256(b"decoded with 16 bits and floats\n")
    for file in (*listed["train"], *listed["test"]):
        found = regular(file.path, f"data.root={str(root)!r}")
        sha.update(f"{file.path.relative_to(root)}/{found.st_size}/{found.st_mtime_ns}\n".encode())
    return sha.hexdigest()


def _cache_files(root: Path) -> list[Path]:
    """Return the files that may hold the array: beside the folder, or in the user's cache folder."""
    root = root.resolve()
    own = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    by_path = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    name = f"{root.name}.raysim.npz"
    return [root.with_name(name), Path(own).expanduser() / "raysim" / f"{by_path}-{name}"]


def _cached(root: Path, digest: str, resize: int | None) -> dict[str, Pixels] | None:
    for target in _cache_files(root):
        try:
            found = regular(target, "data.root")
            memory.check_fits("data.root", str(root), found.st_size)
            with np.load(target, allow_pickle=False) as kept:
                if str(kept["digest"]) == digest and int(kept["resize"]) in (0, resize):
                    return {split: kept[split] for split in ("train", "test")}
        except Exception:  # not there, or not ours, or damaged
            continue
    return None


def _keep(root: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    for target in _cache_files(root):
        own = target.with_name(f"{target.stem}.{os.getpid()}-{threading.get_ident()}.npz")  # others may do the same
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_atomically(own, write).replace(target)
            return
        except OSError as error:
            reason = error.strerror
            for unfinished in target.parent.glob(f"*{own.name}*"):
                unfinished.unlink(missing_ok=True)
    logging.getLogger(__name__).warning(
        "data.root=%r: the decoded images cannot be kept for the next start (%s)", str(root), reason
    )


def _decoded(root: Path, listed: dict[str, list[ImageFile]], resize: int | None) -> tuple[dict[str, Pixels], bool]:
    """Return the images of each split, `(rows, channels, height, width)`, and whether all had one size."""
    paths = [file.path for file in (*listed["train"], *listed["test"])]
    pieces = [paths[start : start + PER_TASK] for start in range(0, len(paths), PER_TASK)]
    with ThreadPoolExecutor(THREADS) as pool:
        forms = [form for piece in pool.map(_forms, pieces) for form in piece]
        memory.check_fits("data.root", str(root), _bytes_of(forms, resize))
        images = [image for piece in pool.map(_decode, pieces) for image in piece]
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1 and resize is None:
        small, large = (" x ".join(map(str, size)) for size in (min(sizes), max(sizes)))
        raise SettingError(
            f"data.root={str(root)!r}: images have {len(sizes)} sizes, from {small} to {large} pixels; set "
            "data.transform.resize to bring them to one"
        )
    channels = max(1 if image.ndim == 2 else 3 for image in images)
    deep = any(image.dtype != np.uint8 for image in images)
    whole = np.stack([_in_form(image, channels, resize if len(sizes) > 1 else None, deep) for image in images])
    cut = len(listed["train"])
    return {"train": whole[:cut], "test": whole[cut:]}, len(sizes) == 1


class Form(NamedTuple):
    """Size and kind of an image, from the head of its file."""

    height: int
    width: int
    mode: str

    @property
    def is_grey(self) -> bool:
        """Whether it has one channel once it is decoded."""
        return self.mode == "L" or self.is_deep

    @property
    def is_deep(self) -> bool:
        """Whether it becomes floats."""
        return self.mode in ("F", "I") or self.mode.startswith("I;16")


def _bytes_of(forms: Sequence[Form], resize: int | None) -> int:
    """Return the bytes of all decoded images and of the array that is made of them, which are there together."""
    single = sum(each.height * each.width * (1 if each.is_grey else 3) * (4 if each.is_deep else 1) for each in forms)
    entries = 1 if all(each.is_grey for each in forms) else 3
    entries *= 4 if any(each.is_deep for each in forms) else 1
    sizes = {(each.height, each.width) for each in forms}
    largest = resize**2 if len(sizes) > 1 and resize is not None else max(h * w for h, w in sizes)
    return single + len(forms) * largest * entries


def _forms(paths: list[Path]) -> list[Form]:
    return _of_each(paths, lambda image: Form(image.height, image.width, image.mode))


def _decode(paths: list[Path]) -> list[Pixels]:
    return _of_each(paths, _pixels)


def _of_each(paths: list[Path], read: Callable[["Image.Image"], Value]) -> list[Value]:
    """Return what is read of each image."""
    from PIL import Image

    found = []
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as image:
                if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels; Pillow allows {Image.MAX_IMAGE_PIXELS}")
                found.append(read(image))
        except Exception as error:
            raise SettingError(
                f"data.root: {str(path)!r} cannot be decoded ({reason_of(error)}); allowed: image files"
            ) from None
    return found


def _pixels(image: "Image.Image") -> Pixels:
    """Return the pixels of an image: bytes, or float32 in [0, 1] where it is grey with more than 8 bits.

    Raises:
        ValueError: If its values are not within the range that stands for black to white.
    """
    if image.mode == "L":
        return np.asarray(image)
    if not Form(image.height, image.width, image.mode).is_deep:
        return np.asarray(image.convert("RGB"))
    white = 1 if image.mode == "F" else WIDEST_GREY
    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(
            f"its mode is {image.mode!r} and its values are {values.min():g} to {values.max():g}; allowed in this "
            f"mode: 0 to {white}"
        )
    return (values / white).astype(np.float32)


def _in_form(image: Pixels, channels: int, resize: int | None, deep: bool) -> Pixels:
    """Return an image `(channels, height, width)`, of floats where some image of the set is `deep`."""
    image = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    image = np.repeat(image, channels, axis=0) if len(image) < channels else image
    if deep and image.dtype == np.uint8:
        image = (image / 255).astype(np.float32)
    if resize is None:
        return image
    small = resized(torch.tensor(image)[None].float(), resize)[0]
    return small.numpy() if deep else small.round_().clamp_(0, 255).byte().numpy()
