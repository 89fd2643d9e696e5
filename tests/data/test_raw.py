"""Arrays of the user are never written to, and those that are no images and labels are refused by name."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.data import datasets, raw
from raysim.data.partition import partition
from raysim.data.raw import from_arrays
from raysim.data.rules import PartitionOptions
from raysim.data.transform import Transform
from raysim.simulation.build import build_scenario
from tests.clocked import QUICK, played
from tests.conftest import tiny_settings

ROWS = 60


def arrays(dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) % 3
    images = rng.random((ROWS, 1, 8, 8)) if dtype != "uint8" else rng.integers(0, 256, (ROWS, 1, 8, 8))
    return [images[:40].astype(dtype), labels[:40], images[40:].astype(dtype), labels[40:]]


def mapped(array: np.ndarray, folder: Path, mode: str) -> np.ndarray:
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode=mode)


def locked(array: np.ndarray, _folder: Path) -> np.ndarray:
    array.flags.writeable = False
    return array


FORMS: dict[str, Callable[[np.ndarray, Path], np.ndarray]] = {
    "writable": lambda array, _: array,
    "read-only": locked,
    "mapped for reading": lambda array, folder: mapped(array, folder, "r"),
    "mapped for writing": lambda array, folder: mapped(array, folder, "r+"),
    "byte-swapped": lambda array, _: array.astype(array.dtype.newbyteorder(">")),
    "columns first": lambda array, _: np.asfortranarray(array),
    "strided": lambda array, _: np.repeat(array, 2, axis=0)[::2],
    "backwards": lambda array, _: array[::-1].copy()[::-1],
}
WHOLE = Transform(resize=12, pad_to=16, grey_to_rgb=True, augment=[{"name": "RandomCrop", "size": 16, "padding": 2}])


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize("transform", [Transform(), Transform(normalize=False), WHOLE], ids=["plain", "raw", "all"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8"])
@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_any_form_train_and_stay_as_they_are(form, dtype, transform, tmp_path, monkeypatch):
    given = [FORMS[form](array, tmp_path) for array in arrays(dtype)]
    before = [digest(array) for array in given]
    found = from_arrays("mine", given)
    monkeypatch.setitem(datasets.DATASETS, "mine", lambda source: found)
    data = datasets.load("mine", None, False, 30, 0, transform=transform)
    inputs, _ = data.train_rows(np.arange(10))
    augment = data.augmenter(0, 1, 0)
    _ = data.test_rows(np.arange(10)), None if augment is None else augment(inputs)
    assert [digest(array) for array in given] == before
    monkeypatch.setitem(datasets.DATASETS, "plain", lambda source: from_arrays("plain", arrays(dtype)))
    assert datasets.load("plain", None, False, 30, 0, transform=transform).digest == data.digest


def mapped_data() -> list[np.ndarray]:
    return [np.load(f"{index}.npy", mmap_mode="r+") for index in range(4)]


def test_a_run_leaves_the_files_of_mapped_arrays_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index, array in enumerate(arrays()):
        np.save(f"{index}.npy", array)
    before = [Path(f"{index}.npy").read_bytes() for index in range(4)]
    named = f"data={{name: '{__name__}:mapped_data', partition: {{name: iid}}}}"
    without = [setting for setting in QUICK if "max_train" not in setting]
    played(build_scenario(tiny_settings(named, *without, "rounds=2", "method.name=fedavg")))
    assert [Path(f"{index}.npy").read_bytes() for index in range(4)] == before


def with_labels(labels: object, place: int = 1) -> list[object]:
    given: list[object] = list(arrays())
    given[place] = labels
    return given


LABELS = np.arange(40) % 3
REFUSED: dict[str, tuple[Callable[[], list[object]], str]] = {
    "beyond 64 bits": (
        lambda: with_labels(np.where(LABELS == 0, np.uint64(2**63 + 1), LABELS.astype(np.uint64))),
        r"train_targets of uint64 \(40,\), 1 to 9223372036854775809, are not allowed; allowed: whole numbers",
    ),
    "beyond the rows": (
        lambda: with_labels(np.where(LABELS == 0, 2**40, LABELS)),
        "train_targets hold the class 1099511627776, with 40 training rows; allowed: classes numbered from 0",
    ),
    "of the test rows": (lambda: with_labels(np.full(20, 2**50), 3), "test_targets hold the class 1125899906842624"),
    "negative": (lambda: with_labels(LABELS - 1), r"train_targets of int64 \(40,\), -1 to 1, are not allowed"),
    "too few": (lambda: with_labels(LABELS[:39]), r"train_targets of int64 \(39,\), 0 to 2, are not allowed|\(39,\)"),
    "floats": (lambda: with_labels(LABELS * 1.0), r"train_targets of float64 \(40,\) are not allowed"),
    "booleans": (lambda: with_labels(LABELS > 0), r"train_targets of bool \(40,\) are not allowed"),
    "objects": (lambda: with_labels(LABELS.astype(object)), r"train_targets of object \(40,\) are not allowed"),
    "numbers of 70 digits": (lambda: with_labels([10**70] * 40), r"train_targets of object \(40,\) are not allowed"),
    "ragged labels": (lambda: with_labels([[1], [1, 2]]), "train_targets are no array: ValueError"),
    "ragged images": (lambda: with_labels([[1], [1, 2]], 0), "train_inputs are no array: ValueError"),
    "users beyond 64 bits": (
        lambda: [*arrays(), np.full(40, 2**64 - 1, np.uint64)],
        r"train_users of uint64 \(40,\), 18446744073709551615 to 18446744073709551615, are not allowed",
    ),
    "no rows": (
        lambda: with_labels(np.empty((0, 1, 8, 8), np.float32), 0),
        r"of float32 \(0, 1, 8, 8\) are not",
    ),
    "not a number": (
        lambda: with_labels(np.full((40, 1, 8, 8), np.nan, np.float32), 0),
        "hold values that are not finite in float32",
    ),
    "too large for float32": (
        lambda: with_labels(np.full((40, 1, 8, 8), 1e300), 0),
        "hold values that are not finite in float32",
    ),
    "images of 16 bits": (
        lambda: with_labels(np.zeros((40, 1, 8, 8), np.uint16), 0),
        r"train_inputs of uint16 \(40, 1, 8, 8\) are not allowed; allowed: .* unsigned bytes or floats",
    ),
    "complex images": (lambda: with_labels(np.zeros((40, 1, 8, 8), complex), 0), "train_inputs of complex128"),
    "objects as images": (lambda: with_labels(np.zeros((40, 1, 8, 8), object), 0), "train_inputs of object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_is_refused_by_name(case):
    make, said = REFUSED[case]
    with pytest.raises(SettingError, match=rf"^data\.name='mine': .*({said})"):
        from_arrays("mine", make())


def test_a_data_set_of_one_class_or_with_a_gap():
    one = arrays()
    one[1], one[3] = np.zeros(40, np.int64), np.zeros(20, np.int64)
    assert set(from_arrays("mine", one).train_targets) == {0}
    with pytest.raises(SettingError, match="one target for each input, and at least one input"):
        raw.check_counts("mine", raw.RawData(one[0], one[1][:5], one[2], one[3]))


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pipe": (lambda folder: pipe(folder / "rows.json"), "is no file; allowed: a file"),
    "a folder": (lambda folder: made(folder / "rows.npz"), "is no file|cannot be read"),
    "a dangling link": (lambda folder: link(folder / "rows.npz", "nowhere"), "cannot be read: .*No such file"),
    "a loop of links": (lambda folder: link(folder / "rows.npz", "rows.npz"), "cannot be read"),
    "no archive": (lambda folder: written(folder / "rows.npz", b"PK\x03\x04 no"), "BadZipFile"),
    "no Parquet": (lambda folder: written(folder / "rows.parquet", b"PAR1 no"), "cannot be read as .parquet"),
    "deep lists": (
        lambda folder: written(folder / "rows.json", b"[" * 10**5),
        "ValueError: its JSON is nested too",
    ),
    "no text": (lambda folder: written(folder / "rows.json", b"\xff\xfe"), "cannot be read: UnicodeDecodeError"),
    "pickles": (
        lambda folder: saved(folder, client=np.array([0, None]), row=np.arange(2)),
        "Object arrays cannot|cannot be read",
    ),
    "a huge client": (lambda folder: saved(folder, client=np.array([0, 2**40]), row=np.arange(2)), "without a gap"),
    "huge rows": (
        lambda folder: saved(folder, client=np.arange(2), row=np.full(2, 2**63, np.uint64)),
        "holds uint64",
    ),
    "huge numbers": (
        lambda folder: written(folder / "rows.json", json.dumps([[10**30], [2]]).encode()),
        r"holds object \(1,\); allowed: whole numbers",
    ),
    "ragged": (
        lambda folder: written(folder / "rows.json", b"[[[1], [2, 3]], [1]]"),
        "allowed: whole numbers",
    ),
}


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def made(path: Path) -> Path:
    path.mkdir()
    return path


def link(path: Path, to: str) -> Path:
    path.symlink_to(to)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(folder: Path, **columns: np.ndarray) -> Path:
    np.savez(folder / "rows.npz", allow_pickle=True, **columns)
    return folder / "rows.npz"


@pytest.mark.parametrize("case", FILES)
def test_a_partitions_file_that_is_none_is_refused_by_name(case, tmp_path):
    make, said = FILES[case]
    path = make(tmp_path)
    with pytest.raises(SettingError, match=said) as refused:
        partition(np.arange(10) % 2, 2, "file", PartitionOptions(path=str(path)), 0)
    assert path.name in str(refused.value)
