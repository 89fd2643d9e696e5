"""Read a folder of image files: decode them once, and keep one array with a digest of the file list."""

import hashlib
import logging
import os
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.errors import SettingError
from raysim.core.storage import atomic
from raysim.data.raw import RawImages, Source, refuse_unread
from raysim.data.transform import resized

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")
THREADS = 8
"""Decoders at a time; Pillow decodes outside Python's lock, and opening small files waits for the disk."""
PER_TASK = 500
Bytes = NDArray[np.uint8]


def load(source: Source) -> RawImages:
    """Read `train/<class>/*` and `test/<class>/*` under a folder; classes are numbered by sorted name.

    Images are decoded once. The array is kept beside the folder (`<folder>.raysim.npz`) or, if that is not
    writable, in the user's cache folder, together with a digest of all names, sizes and modification times: a
    changed folder is decoded anew. If all images are grey they stay grey, else all become RGB. Images of unequal
    size are resized to `data.transform.resize`.

    Raises:
        SettingError: If the folder or a class is missing, or an image cannot be read.
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
    classes = sorted({path.parent.name for path in listed["train"]})
    labels = [np.array([classes.index(path.parent.name) for path in listed[split]]) for split in ("train", "test")]
    return RawImages(arrays["train"], labels[0], arrays["test"], labels[1])


def _files(root: Path, split: str) -> Iterator[Path]:
    if not (root / split).is_dir():
        raise SettingError(
            f"data.root={str(root)!r}: there is no folder {split!r} in it; allowed: a folder that holds "
            "train/<class>/* and test/<class>/*"
        )
    for folder in sorted(path for path in (root / split).iterdir() if path.is_dir()):
        yield from sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _check_classes(root: Path, listed: dict[str, list[Path]]) -> None:
    train, test = ({path.parent.name for path in listed[split]} for split in ("train", "test"))
    if not train:
        raise SettingError(f"data.root={str(root)!r}: no image in train/<class>; allowed: {', '.join(SUFFIXES)}")
    for name in sorted(train ^ test):
        split = "test" if name in train else "train"
        raise SettingError(
            f"data.root={str(root)!r}: class {name!r} has no image in {split!r}; every class needs one"
        )


def _digest_of(root: Path, listed: dict[str, list[Path]]) -> str:
    sha = hashlib.sha256()
    for path in (*listed["train"], *listed["test"]):
        found = path.stat()
        sha.update(f"{path.relative_to(root)}/{found.st_size}/{found.st_mtime_ns}\n".encode())
    return sha.hexdigest()


def _cache_files(root: Path) -> list[Path]:
    """Return the files that may hold the array: beside the folder, or in the user's cache folder."""
    root = root.resolve()
    own = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    by_path = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    name = f"{root.name}.raysim.npz"
    return [root.with_name(name), Path(own).expanduser() / "raysim" / f"{by_path}-{name}"]


def _cached(root: Path, digest: str, resize: int | None) -> dict[str, Bytes] | None:
    for target in _cache_files(root):
        try:
            with np.load(target, allow_pickle=False) as kept:
                if str(kept["digest"]) == digest and int(kept["resize"]) in (0, resize):
                    return {split: kept[split] for split in ("train", "test")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or not ours
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


def _decoded(root: Path, listed: dict[str, list[Path]], resize: int | None) -> tuple[dict[str, Bytes], bool]:
    """Return the images of each split, `(rows, channels, height, width)`, and whether all had one size."""
    paths = [*listed["train"], *listed["test"]]
    pieces = [paths[start : start + PER_TASK] for start in range(0, len(paths), PER_TASK)]
    with ThreadPoolExecutor(THREADS) as pool:
        images = [image for piece in pool.map(_decode, pieces) for image in piece]
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1 and resize is None:
        small, large = (" x ".join(map(str, size)) for size in (min(sizes), max(sizes)))
        raise SettingError(
            f"data.root={str(root)!r}: images have {len(sizes)} sizes, from {small} to {large} pixels; set "
            "data.transform.resize to bring them to one"
        )
    channels = max(1 if image.ndim == 2 else 3 for image in images)
    whole = np.stack([_in_form(image, channels, resize if len(sizes) > 1 else None) for image in images])
    cut = len(listed["train"])
    return {"train": whole[:cut], "test": whole[cut:]}, len(sizes) == 1


def _decode(paths: list[Path]) -> list[Bytes]:
    from PIL import Image

    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image if image.mode == "L" else image.convert("RGB")))
        except Exception as error:
            raise SettingError(
                f"data.root: {str(path)!r} cannot be decoded ({error}); allowed: image files"
            ) from None
    return images


def _in_form(image: Bytes, channels: int, resize: int | None) -> Bytes:
    image = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    image = np.repeat(image, channels, axis=0) if len(image) < channels else image
    if resize is None:
        return image
    return resized(torch.tensor(image)[None].float(), resize).round_().clamp_(0, 255).byte()[0].numpy()
