import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raysim.core.errors import SettingError
from raysim.data import datasets, imagefolder
from raysim.data.raw import RawData, Source
from raysim.data.transform import Transform
from tests.conftest import SHARED_DATA


@pytest.fixture
def folder(tmp_path, cifar_jpegs) -> Path:
    root = tmp_path / "images"
    for name, files in cifar_jpegs.items():
        for split, part in (("train", files[:30]), ("test", files[30:])):
            (root / split / name).mkdir(parents=True)
            for number, content in enumerate(part):
                (root / split / name / f"{number:04}.jpg").write_bytes(content)
    return root


def load(root: Path, resize: int | None = None) -> RawData:
    return imagefolder.load(Source("imagefolder", str(root), resize=resize))


def test_images_are_those_of_torchvisions_image_folder(folder):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    raw = load(folder)
    for split, images, labels in (
        ("train", raw.train_inputs, raw.train_targets),
        ("test", raw.test_inputs, raw.test_targets),
    ):
        expected = ImageFolder(folder / split, transform=pil_to_tensor)
        assert np.array_equal(images, torch.stack([image for image, _ in expected]).numpy())
        assert labels.tolist() == expected.targets


def test_a_second_start_decodes_nothing_and_a_changed_folder_is_noticed(folder, monkeypatch):
    first = load(folder)
    assert (folder.parent / "images.raysim.npz").is_file()
    with monkeypatch.context() as patched:
        patched.setattr(imagefolder, "_decode", lambda paths: pytest.fail("decoded again"))
        assert np.array_equal(load(folder).train_inputs, first.train_inputs)
    changed = folder / "train" / "airplane" / "0000.jpg"
    changed.write_bytes((folder / "train" / "airplane" / "0001.jpg").read_bytes())
    assert np.array_equal(load(folder).train_inputs[0], first.train_inputs[1])
    (folder / "test" / "automobile" / "0003.jpg").unlink()
    assert len(load(folder).test_inputs) == 19
    assert [path.name for path in folder.parent.iterdir()] != []
    assert sorted(path.name for path in folder.parent.iterdir()) == ["images", "images.raysim.npz"]


def test_a_broken_cache_is_replaced(folder):
    first = load(folder)
    cache = folder.parent / "images.raysim.npz"
    cache.write_bytes(cache.read_bytes()[:5000])
    assert np.array_equal(load(folder).train_inputs, first.train_inputs)
    cache.write_bytes(b"something else")
    assert np.array_equal(load(folder).train_inputs, first.train_inputs)
    assert len(np.load(cache)["train"]) == 60


def test_two_may_decode_at_the_same_time(folder):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: load(folder).train_inputs, range(4)))
    assert all(np.array_equal(result, results[0]) for result in results)
    assert len(np.load(folder.parent / "images.raysim.npz")["train"]) == 60


def test_where_the_place_beside_the_folder_cannot_be_written_the_users_cache_is_used(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside, own = imagefolder._cache_files(folder)
    assert (beside, own.parent) == (folder.parent / "images.raysim.npz", tmp_path / "cache" / "raysim")
    (tmp_path / "file").touch()
    monkeypatch.setattr(imagefolder, "_cache_files", lambda root: [tmp_path / "file" / "images.raysim.npz", own])
    load(folder)
    assert own.is_file()
    assert not beside.exists()


def test_without_any_place_to_write_the_reason_is_said(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr(imagefolder, "_cache_files", lambda root: [tmp_path / "file" / "images.raysim.npz"])
    assert len(load(folder).train_inputs) == 60
    assert "the decoded images cannot be kept for the next start (File exists)" in caplog.text


def save(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    image = Image.effect_noise(size, 50)
    image.convert(mode).save(path)


def test_images_of_unequal_size_need_a_size(folder):
    save(folder / "train" / "airplane" / "0007.jpg", (50, 40))
    with pytest.raises(
        SettingError, match=r"images have 2 sizes, from 32 x 32 to 40 x 50 pixels; set data\.transform\.resize"
    ):
        load(folder)
    data = datasets.load("imagefolder", str(folder), False, None, 0, transform=Transform(resize=24))
    assert data.input_shape == (3, 24, 24)
    again = datasets.load("imagefolder", str(folder), False, None, 0, transform=Transform(resize=24))
    assert again.digest == data.digest
    assert (
        datasets.load("imagefolder", str(folder), False, None, 0, transform=Transform(resize=20)).input_shape[1] == 20
    )


def test_grey_images_stay_grey_unless_some_have_colours(folder):
    for path in folder.rglob("*.jpg"):
        Image.open(io.BytesIO(path.read_bytes())).convert("L").save(path)
    assert load(folder).train_inputs.shape == (60, 1, 32, 32)
    save(folder / "train" / "airplane" / "0007.jpg", (32, 32))
    mixed = load(folder).train_inputs
    assert mixed.shape == (60, 3, 32, 32)
    assert np.array_equal(mixed[0, 0], mixed[0, 2])


def test_folders_of_another_form_are_refused(folder, tmp_path):
    with pytest.raises(SettingError, match="there is no folder 'train' in it"):
        load(tmp_path)
    with pytest.raises(SettingError, match=r"data\.root=null is not allowed with data\.name='imagefolder'"):
        imagefolder.load(Source("imagefolder"))
    with pytest.raises(SettingError, match=r"data\.download=true has no effect"):
        imagefolder.load(Source("imagefolder", str(folder), download=True))
    broken = folder / "test" / "automobile" / "0000.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(SettingError, match=r"data\.root: '.*automobile/0000\.jpg' cannot be decoded"):
        load(folder)
    for path in (folder / "test" / "automobile").iterdir():
        path.unlink()
    with pytest.raises(SettingError, match="class 'automobile' has no image in 'test'; every class needs one"):
        load(folder)


@pytest.mark.long
@pytest.mark.skipif(not (SHARED_DATA / "cifar10_jpeg.tar.gz").is_file(), reason="CIFAR-10-JPEG is not there")
def test_all_of_cifar_10_jpeg_is_decoded_once(tmp_path, monkeypatch):
    with tarfile.open(SHARED_DATA / "cifar10_jpeg.tar.gz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2, Debian's, has none yet
        archive.extractall(tmp_path / "cifar")
    first = datasets.load("imagefolder", str(tmp_path / "cifar"), False, None, 0)
    decoded = []
    monkeypatch.setattr(imagefolder, "_decode", decoded.append)
    data = datasets.load("imagefolder", str(tmp_path / "cifar"), False, None, 0)
    assert not decoded
    np.testing.assert_array_equal(data.test_inputs, first.test_inputs)
    assert data.train_inputs.shape == (50000, 3, 32, 32)
    assert np.bincount(data.train_targets).tolist() == [5000] * 10
    assert np.bincount(data.test_targets).tolist() == [1000] * 10
    assert data.mean == pytest.approx((0.491, 0.482, 0.447), abs=2e-3)  # of the lossless CIFAR-10: .4914 .4822 .4465
    assert os.path.getsize(tmp_path / "cifar.raysim.npz") < 185e6
