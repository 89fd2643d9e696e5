"""Data sets of Hugging Face's library."""

import sys
from pathlib import Path

import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.data.splits import DataSplits

library = pytest.importorskip("datasets")
library.disable_progress_bars()

RNG = np.random.default_rng(0)
ROWS = 20
IMAGES = RNG.integers(0, 256, (ROWS, 4, 5, 3), dtype=np.uint8)
TOKENS = RNG.integers(0, 9, (ROWS, 6))
COLUMNS = {
    "image": list(IMAGES),
    "grey": [image[..., 0] for image in IMAGES],
    "tokens": TOKENS.tolist(),
    "ragged": [[1] * (1 + row % 2) for row in range(ROWS)],
    "matrix": RNG.random((ROWS, 2, 3)).astype(np.float32),
    "age": RNG.random(ROWS).astype(np.float32).tolist(),
    "smokes": [bool(row % 2) for row in range(ROWS)],
    "note": [f"row {row}" for row in range(ROWS)],
    "when": [row * 10**9 for row in range(ROWS)],
    "who": [f"user {row % 4}" for row in range(ROWS)],
    "label": [row % 2 for row in range(ROWS)],
    "named": ["no" if row % 2 else "yes" for row in range(ROWS)],
    "gap": [None if row == 3 else 1 for row in range(ROWS)],
}


def features() -> object:
    value, sequence = library.Value, library.Sequence
    return library.Features(
        {
            "image": library.Image(),
            "grey": library.Image(),
            "tokens": sequence(value("int64")),
            "ragged": sequence(value("int64")),
            "matrix": library.Array2D((2, 3), "float32"),
            "age": value("float32"),
            "smokes": value("bool"),
            "note": value("string"),
            "when": value("timestamp[ns]"),
            "who": value("string"),
            "label": library.ClassLabel(names=["ill", "well", "unknown"]),
            "named": value("string"),
            "gap": value("int64"),
        }
    )


@pytest.fixture(scope="module")
def whole() -> object:
    return library.Dataset.from_dict(COLUMNS, features=features())


@pytest.fixture(scope="module")
def split(whole: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows to train on, to validate and to test."""
    parts = {"train": range(12), "validation": range(12, 15), "test": range(15, ROWS)}
    folder = tmp_path_factory.mktemp("splits")
    library.DatasetDict({name: whole.select(rows) for name, rows in parts.items()}).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def undivided(whole: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undivided")
    whole.save_to_disk(folder)
    return folder


def load(
    root: Path | str | None, task: str = "classification", download: bool = False, **options: object
) -> DataSplits:
    given = None if root is None else str(root)
    return datasets.load("huggingface", given, download, None, 0, options, task=task)


def test_images_have_their_channels_first(split: Path) -> None:
    data = load(split, inputs="image", target="label", user="who")
    np.testing.assert_array_equal(data.train_inputs, IMAGES[:12].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test_inputs, IMAGES[15:].transpose(0, 3, 1, 2))
    assert data.max_value == 255
    assert data.train_targets.tolist() == COLUMNS["label"][:12]
    assert data.train_users.tolist() == [row % 4 for row in range(12)]
    grey = load(split, inputs="grey", target="label")
    np.testing.assert_array_equal(grey.train_inputs, IMAGES[:12, None, :, :, 0])


def test_classes_keep_their_names_also_without_rows(split: Path) -> None:
    data = load(split, inputs="matrix", target="label")
    assert data.class_names == ("ill", "well", "unknown")
    assert data.num_classes == 3
    texts = load(split, inputs="matrix", target="named")
    assert texts.class_names == ("no", "yes")
    assert texts.train_targets.tolist() == [1 - row % 2 for row in range(12)]


def test_lists_of_numbers_are_tokens_and_columns_of_one_number_a_vector(split: Path) -> None:
    tokens = load(split, inputs=["tokens"], target="label")
    np.testing.assert_array_equal(tokens.train_inputs, TOKENS[:12])
    assert tokens.vocabulary == 9
    vectors = load(split, "regression", inputs=["age", "smokes"], target="label")
    expected = np.column_stack([COLUMNS["age"], COLUMNS["smokes"]])[:12]
    np.testing.assert_allclose(vectors.train_inputs, expected)
    assert (vectors.num_classes, vectors.class_names) == (1, ())


def test_several_inputs_keep_the_names_of_their_columns(split: Path) -> None:
    data = load(split, inputs=["tokens", "age", "matrix"], target="label")
    shapes = {name: array.shape for name, array in data.train_inputs.items()}
    assert shapes == {"tokens": (12, 6), "age": (12, 1), "matrix": (12, 2, 3)}


def test_all_other_columns_are_inputs_by_default(whole: object, tmp_path: Path) -> None:
    whole.select_columns(["age", "smokes", "label", "who"]).save_to_disk(tmp_path)
    data = load(tmp_path, target="label", user="who")
    assert data.input_shape == (2,)


def test_a_data_set_without_test_rows_is_divided_by_class(undivided: Path) -> None:
    data = load(undivided, inputs="tokens", target="label")
    assert np.bincount(data.train_targets).tolist() == [8, 8]
    assert np.bincount(data.test_targets).tolist() == [2, 2]
    rows = np.concatenate([data.train_inputs, data.test_inputs])
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(TOKENS, axis=0))
    assert len(load(undivided, inputs="tokens", target="label", test_share=0.5).test_targets) == 10


def test_another_split_may_be_tested(split: Path) -> None:
    data = load(split, inputs="tokens", target="label", test_split="validation")
    np.testing.assert_array_equal(data.test_inputs, TOKENS[12:15])


def test_bytes_in_arrays_are_images(tmp_path: Path) -> None:
    columns = {"pixels": IMAGES.transpose(0, 3, 1, 2), "label": COLUMNS["label"]}
    form = library.Features({"pixels": library.Array3D((3, 4, 5), "uint8"), "label": library.Value("int64")})
    library.Dataset.from_dict(columns, features=form).save_to_disk(tmp_path)
    data = load(tmp_path, target="label")
    assert (data.max_value, data.train_inputs.dtype) == (255, np.uint8)


CHOSEN = {"inputs": "tokens", "target": "label"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": None}, "data.options.target names no column; allowed: age, gap, grey, image, label, ..."),
        ({"target": "labels"}, "data.options.target='labels' is no column of the data; nearest: label, "),
        ({"inputs": "token"}, "data.options.inputs='token' is no column of the data; nearest: tokens, "),
        ({"inputs": 3}, "data.options.inputs=3 is not allowed; allowed: the name of a column, or a list"),
        ({"user": "whom"}, "data.options.user='whom' is no column of the data; nearest: who"),
        ({"user": "label"}, "data.options.user='label' is not allowed: data.options.target names that column, too"),
        (
            {"inputs": None},
            "column 'note' of data.root=.* holds texts; allowed: numbers and images: tokenise it with",
        ),
        ({"inputs": "note"}, "column 'note' of data.root=.* holds texts; allowed: numbers and images: tokenise it"),
        ({"inputs": "label", "target": "named"}, "column 'label' of data.root=.* holds names of classes; allowed"),
        ({"inputs": "when"}, r"column 'when' of data.root=.* holds timestamp\[ns\]; allowed: numbers and images"),
        ({"inputs": "ragged"}, "column 'ragged' has rows of unequal shape, or without a value; allowed: .* pad them"),
        ({"inputs": "gap"}, "hold values that are not finite"),
        ({"target": "age"}, "train_targets of float32"),
        ({"test_share": 0.1}, "data.options.test_share=0.1 has no effect"),
        ({"test_share": 2}, r"data.options.test_share=2 is not in \(0, 1\)"),
        (
            {"test_split": "tset"},
            r"data.options.test_split='tset' is not allowed: .* has the splits \['train', 'valid",
        ),
        ({"subset": "a"}, "data.options.subset='a' has no effect: data.root=.* is a folder; allowed: null"),
        ({"labels": "a"}, "data.options.labels='a' is unknown; data.name='huggingface' takes: "),
    ],
)
def test_options_that_do_not_fit_are_refused(split: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        load(split, **(CHOSEN | options))


def test_images_of_unequal_size_are_refused(tmp_path: Path) -> None:
    images = [np.zeros((4, 4 + row % 2), np.uint8) for row in range(4)]
    form = library.Features({"image": library.Image(), "label": library.Value("int64")})
    library.Dataset.from_dict({"image": images, "label": [0, 0, 1, 1]}, features=form).save_to_disk(tmp_path)
    with pytest.raises(SettingError, match=r"column 'image' has rows of unequal shape, .* resize them with map"):
        load(tmp_path, target="label")


def test_what_is_no_saved_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data.root=null is not allowed with data.name='huggingface'; allowed: a"):
        load(None, target="label")
    with pytest.raises(SettingError, match=r"is no folder that save_to_disk wrote: FileNotFoundError"):
        load(tmp_path, target="label")


def test_the_hub_is_asked_only_where_a_download_is_allowed(
    whole: object, undivided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(name: str, subset: str | None) -> object:
        asked.append((name, subset))
        if name == "org/none":
            raise ConnectionError("no network")
        return library.DatasetDict({"train": whole})

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    with pytest.raises(
        SettingError, match=r"data.root='org/set' does not exist; allowed: .* data.download=true a name"
    ):
        load("org/set", **CHOSEN)
    assert not asked
    data = load("org/set", download=True, subset="small", **CHOSEN)
    assert asked == [("org/set", "small")]
    assert data.digest == load(undivided, **CHOSEN).digest
    with pytest.raises(
        SettingError, match=r"data.root='org/none' cannot be loaded from the hub: ConnectionError: no n"
    ):
        load("org/none", download=True, **CHOSEN)


def test_a_missing_library_is_named_with_its_extra(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingError, match=r"needs the library datasets, .* pip install 'raysim\[huggingface\]'"):
        load(split, **CHOSEN)
