"""Image files of all kinds: scaled by the range of their mode, found as torchvision does, or refused by name."""

import os
import resource
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from raysim.core.errors import SettingError
from raysim.data import imagefolder
from raysim.data.raw import RawData, Source, from_arrays
from tests.conftest import CONFIGS


def load(root: Path, resize: int | None = None) -> RawData:
    return imagefolder.load(Source("imagefolder", str(root), resize=resize))


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 6))


def save_all(root: Path, save: Callable[[np.ndarray, Path], None], suffix: str) -> None:
    for split in ("train", "test"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                save(pixels(number), root / split / name / f"{number}{suffix}")


def rgb_of_16_bits(values: np.ndarray, path: Path) -> None:
    """Write a PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    deep = np.repeat(values[:, :, None] * 257, 3, axis=2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    head = struct.pack(">IIBBBBB", *values.shape, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def big_endian(values: np.ndarray, path: Path) -> None:
    Image.frombytes("I;16B", values.shape, (values * 257).astype(">u2").tobytes()).save(path)


KINDS: dict[str, tuple[Callable[[np.ndarray, Path], None], str]] = {
    "16 bits": (lambda values, path: Image.fromarray((values * 257).astype(np.uint16)).save(path), ".png"),
    "16 bits, TIFF": (lambda values, path: Image.fromarray((values * 257).astype(np.uint16)).save(path), ".tif"),
    "16 bits, high byte first": (big_endian, ".tiff"),
    "32 bits": (lambda values, path: Image.fromarray((values * 257).astype(np.int32)).save(path), ".tif"),
    "floats": (lambda values, path: Image.fromarray((values / 255).astype(np.float32)).save(path), ".tif"),
    "16 bits, PGM": (lambda values, path: Image.fromarray((values * 257).astype(np.int32)).save(path), ".pgm"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_grey_images_of_more_than_8_bits_are_scaled_by_their_range(tmp_path, kind):
    save, suffix = KINDS[kind]
    save_all(tmp_path / "set", save, suffix)
    raw = load(tmp_path / "set")
    assert (raw.train_inputs.dtype, raw.max_value, raw.train_inputs.shape) == (np.float32, 1, (6, 1, 6, 6))
    for number in range(3):
        np.testing.assert_allclose(raw.train_inputs[number, 0], pixels(number) / 255, rtol=0, atol=1e-6)
    again = load(tmp_path / "set")
    assert np.array_equal(again.train_inputs, raw.train_inputs)
    assert again.max_value == 1


def test_12_bits_in_16_keep_all_their_steps(tmp_path):
    save_all(
        tmp_path / "set", lambda values, path: Image.fromarray((values + 2000).astype(np.uint16)).save(path), ".png"
    )
    found = load(tmp_path / "set").train_inputs[0, 0]
    np.testing.assert_allclose(found * 65535, pixels(0) + 2000, rtol=0, atol=1e-2)


def test_deep_and_shallow_images_of_a_set_have_one_scale(tmp_path):
    root = tmp_path / "set"
    save_all(root, lambda values, path: Image.fromarray(values.astype(np.uint8)).save(path), ".png")
    Image.fromarray((pixels(1) * 257).astype(np.uint16)).save(root / "train" / "a" / "1.png")
    rgb_of_16_bits(pixels(2), root / "train" / "a" / "2.png")
    raw = load(root)
    assert raw.train_inputs.shape == (6, 3, 6, 6)
    for number in range(3):
        np.testing.assert_allclose(raw.train_inputs[number, 1], pixels(number) / 255, rtol=0, atol=2e-3)
    small = load(root, resize=None).train_inputs
    Image.fromarray((pixels(1)[:4] * 257).astype(np.uint16)).save(root / "train" / "a" / "1.png")
    resized = load(root, resize=6).train_inputs
    assert np.array_equal(resized[0], small[0])
    assert 0 <= resized.min() <= resized.max() <= 1


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


@pytest.mark.parametrize("mode", MODES)
def test_other_modes_are_as_pillow_converts_them(tmp_path, mode):
    suffix = ".tif" if mode in ("CMYK", "YCbCr") else ".png"
    save_all(tmp_path / "set", lambda v, path: Image.fromarray(v.astype(np.uint8)).convert(mode).save(path), suffix)
    raw = load(tmp_path / "set")
    expected = Image.open(tmp_path / "set" / "train" / "a" / f"0{suffix}").convert("L" if mode == "L" else "RGB")
    assert np.array_equal(raw.train_inputs[0], np.atleast_3d(np.asarray(expected)).transpose(2, 0, 1))


@pytest.fixture
def root(tmp_path) -> Path:
    save_all(tmp_path / "set", lambda values, path: Image.fromarray(values.astype(np.uint8)).save(path), ".png")
    return tmp_path / "set"


def test_folders_below_a_class_are_walked_as_torchvision_does(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for number, folder in enumerate(("train/a/images", "train/a/images-2", "train/a/images/x", "train/b/1/2/3")):
        (root / folder).mkdir(parents=True)
        Image.fromarray(pixels(10 + number).astype(np.uint8)).save(root / folder / "0.PNG")
    (elsewhere / "more").mkdir(parents=True)
    Image.fromarray(pixels(20).astype(np.uint8)).save(elsewhere / "more" / "0.png")
    (root / "train" / "a" / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "train" / "b" / "file.png").symlink_to(elsewhere / "more" / "0.png")
    (root / "train" / "a" / "notes.txt").write_text("no image")
    os.mkfifo(root / "train" / "a" / "pipe")  # without the name of an image it is passed over
    raw = load(root)
    expected = ImageFolder(root / "train", transform=lambda image: np.asarray(image)[:, :, 0])
    assert len(raw.train_inputs) == 12
    assert raw.train_targets.tolist() == expected.targets
    assert np.array_equal(raw.train_inputs[:, 0], np.stack([image for image, _ in expected]))


def test_files_of_all_suffixes_of_torchvision_are_read_in_either_case(tmp_path):
    assert set(imagefolder.SUFFIXES) == set(IMG_EXTENSIONS)
    for number, suffix in enumerate((*IMG_EXTENSIONS, *map(str.upper, IMG_EXTENSIONS), ".gif")):
        saved(tmp_path / "set", f"{number:02}{suffix}", Image.fromarray(pixels(number).astype(np.uint8)))
    expected = ImageFolder(tmp_path / "set" / "train", transform=lambda image: np.asarray(image)[:, :, 0])
    found = load(tmp_path / "set").train_inputs
    assert len(found) == 2 * len(IMG_EXTENSIONS)
    assert np.array_equal(found[:, 0], np.stack([image for image, _ in expected]))


def test_all_files_may_be_one_folder_deeper(root):
    for folder in (path for split in ("train", "test") for path in (root / split).iterdir()):
        (folder / "images").mkdir()
        for path in folder.glob("*.png"):
            path.rename(folder / "images" / path.name)
    assert load(root).train_targets.tolist() == [0, 0, 0, 1, 1, 1]


def listening(path: Path) -> None:
    folder = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(path.name)
    os.chdir(folder)


def bomb(path: Path) -> None:
    Image.new("1", (14_000, 14_000)).save(path)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "dangling link": (lambda path: path.symlink_to("/nope"), "the link '.*x.png' cannot be read: No such file"),
    "loop of links": (lambda path: path.symlink_to(path.name), "the link '.*x.png' cannot be read: "),
    "pipe": (os.mkfifo, "x.png' is a named pipe; allowed: regular files"),
    "link to a pipe": (lambda path: (os.mkfifo(path.parent / "p"), path.symlink_to("p")), "x.png' is a named pipe"),
    "socket": (listening, "x.png' is a socket; allowed: regular files"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "x.png' is a device; allowed: regular files"),
    "empty": (lambda path: path.touch(), "x.png' cannot be decoded"),
    "no image": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9), "x.png' cannot be decoded"),
    "truncated": (
        lambda path: path.write_bytes((path.parent / "0.png").read_bytes()[:-30]),
        r"x.png' cannot be decoded \(",
    ),
    "bomb": (bomb, "x.png' cannot be decoded .*pixels"),
    "too bright": (
        lambda path: Image.fromarray(np.full((6, 6), 70_000, np.int32)).save(path, "TIFF"),
        r"x.png' cannot be decoded \(its mode is 'I' and its values are 70000 to 70000; allowed in this mode: 0 to 6",
    ),
    "negative": (
        lambda path: Image.fromarray(np.full((6, 6), -0.5, np.float32)).save(path, "TIFF"),
        r"its mode is 'F' and its values are -0.5 to -0.5; allowed in this mode: 0 to 1\)",
    ),
    "no number": (
        lambda path: Image.fromarray(np.full((6, 6), np.nan, np.float32)).save(path, "TIFF"),
        "its mode is 'F' and its values are nan to nan; allowed in this mode: 0 to 1",
    ),
    "folder in itself": (lambda path: path.symlink_to(".."), "x.png/a' leads back to '.*train/a'"),
    "folder in its class": (lambda path: path.symlink_to("."), "x.png' leads back to '.*/a'; allowed: folders that"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_image_is_refused_by_name(root, case):
    make, said = WRONG[case]
    make(root / "train" / "a" / "x.png")
    with pytest.raises(SettingError, match=said) as refused:
        load(root)
    assert str(refused.value).startswith("data.root")


@pytest.mark.parametrize("name", [b"\xff.png", b"\xff"], ids=["file", "class"])
def test_names_that_are_no_text_are_refused(root, name):
    for split in ("train", "test"):
        folder = os.fsencode(root / split / "a")
        if name.endswith(b".png"):
            Path(os.fsdecode(os.path.join(folder, name))).write_bytes((root / "train" / "a" / "0.png").read_bytes())
        else:
            os.rename(folder, os.path.join(os.fsencode(root / split), name))
    with pytest.raises(
        SettingError, match=r"the name of '.*\\udcff.*' is no UTF-8; allowed: names of text"
    ) as refused:
        load(root)
    str(refused.value).encode()


def test_a_kept_array_that_is_none_is_passed_over(root):
    kept = root.with_name("set.raysim.npz")
    os.mkfifo(kept)
    assert len(load(root).train_inputs) == 6


def test_the_name_of_a_file_does_not_matter(root):
    Image.fromarray(pixels(7).astype(np.uint8)).save(root / "train" / "a" / "0.png", "BMP")
    assert np.array_equal(load(root).train_inputs[0, 0], pixels(7))


@pytest.mark.slow
def test_the_command_says_it_in_one_message(root):
    os.mkfifo(root / "train" / "a" / "x.png")
    given = ["--set", "data.name=imagefolder", "--set", f"data.root={root}", "--set", "data.max_train_examples=null"]
    command = [sys.executable, "-m", "raysim", "run", str(CONFIGS / "digits.yaml"), *given, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "is a named pipe; allowed: regular files" in done.stderr
    assert "Traceback" not in done.stderr


def saved(root: Path, name: str, image: Image.Image) -> None:
    for split in ("train", "test"):
        (root / split / "a").mkdir(parents=True, exist_ok=True)
        image.save(root / split / "a" / name)


GREY, COLOUR, DEEP = (Image.new(mode, (10, 6)) for mode in ("L", "RGB", "I;16"))
WIDE = Image.new("L", (30, 6))


@pytest.mark.parametrize(
    ("images", "resize", "num_bytes"),
    [
        ((GREY, GREY), None, 2 * (2 * 60) + 2 * (2 * 60)),
        ((GREY, COLOUR), None, 2 * (60 + 180) + 2 * (2 * 180)),
        ((GREY, DEEP), None, 2 * (60 + 240) + 2 * (2 * 240)),
        ((GREY, WIDE), 100, 2 * (60 + 180) + 2 * (2 * 10_000)),
    ],
)
def test_images_that_memory_does_not_hold_are_refused_before_they_are_decoded(
    images, resize, num_bytes, tmp_path, monkeypatch
):
    """Decoded they are held one by one and, for a moment, as one array, too."""
    for number, image in enumerate(images):
        saved(tmp_path / "images", f"{number}.png", image)
    source = Source("imagefolder", str(tmp_path / "images"), resize=resize)
    with monkeypatch.context() as limited:
        limited.setattr(resource, "getrlimit", lambda which: (num_bytes - 1, num_bytes - 1))
        limited.setattr(imagefolder, "_decode", lambda paths: pytest.fail("decoded"))
        with pytest.raises(SettingError, match=r"^data\.root='.*images' needs .* of memory; allowed: what fits into"):
            imagefolder.load(source)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (num_bytes, num_bytes))
    assert len(imagefolder.load(source).train_inputs) == 2


def test_arrays_of_a_user_that_memory_does_not_hold_as_floats_are_refused(monkeypatch):
    images, labels = np.zeros((4, 8, 8)), np.arange(4)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 1000))
    with pytest.raises(SettingError, match=r"^data\.name='my': train_inputs=\(4, 1, 8, 8\) needs .* of memory"):
        from_arrays("my", (images, labels, images, labels))
