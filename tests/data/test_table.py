"""Tables of CSV and Parquet as data sets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from raysim.core.errors import SettingError
from raysim.data import datasets, raw
from raysim.data.splits import DataSplits
from raysim.data.table import table

RNG = np.random.default_rng(0)
ROWS = 40
COLUMNS: dict[str, list[object]] = {
    "age": [None if row == 3 else float(value) for row, value in enumerate(RNG.integers(18, 80, ROWS))],
    "town": [["Ulm", "Jena", "Bonn"][row % 3] for row in range(ROWS)],
    "smokes": [bool(row % 2) for row in range(ROWS)],
    "clinic": [f"clinic {row % 4}" for row in range(ROWS)],
    "note": [f"row {row}" for row in range(ROWS)],
    "outcome": [["ill", "well", "well", "well"][row % 4] for row in range(ROWS)],
    "weight": RNG.normal(70, 9, ROWS).round(2).tolist(),
}
CHOSEN = {"target": "outcome", "user": "clinic", "drop": ["note", "weight"]}


def write(path: Path, columns: dict[str, list[object]] = COLUMNS, delimiter: str = ",") -> Path:
    if path.suffix == ".csv":
        csv.write_csv(pa.table(columns), path, csv.WriteOptions(delimiter=delimiter))
    else:
        parquet.write_table(pa.table(columns), path)
    return path


def load(root: Path | str | None, task: str = "classification", seed: int = 0, **options: object) -> DataSplits:
    given = None if root is None else str(root)
    return datasets.load("table", given, False, None, seed, options, task=task)


def part(rows: list[int], columns: dict[str, list[object]] = COLUMNS) -> dict[str, list[object]]:
    return {name: [values[row] for row in rows] for name, values in columns.items()}


TRAIN, TEST = [row for row in range(ROWS) if row % 5], list(range(0, ROWS, 5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.csv", part(TRAIN))
    write(tmp_path / "test.csv", part(TEST))
    return tmp_path


def expected_inputs() -> tuple[np.ndarray, np.ndarray]:
    """The inputs by hand: age standardised with its gap filled, smokes, and a column for each town."""
    age = np.array([np.nan if value is None else value for value in COLUMNS["age"]], float)
    age[np.isnan(age)] = np.nanmedian(age[TRAIN])
    age = (age - age[TRAIN].mean()) / age[TRAIN].std()
    towns = [[town == each for each in ("Bonn", "Jena", "Ulm")] for town in COLUMNS["town"]]
    matrix = np.column_stack([age, COLUMNS["smokes"], towns]).astype(np.float32)
    return matrix[TRAIN], matrix[TEST]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_encoded_by_the_training_rows(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train{suffix}", part(TRAIN))
    write(tmp_path / f"test{suffix}", part(TEST))
    data = load(tmp_path, **CHOSEN)
    train, test = expected_inputs()
    np.testing.assert_allclose(data.train_inputs, train, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.test_inputs, test, rtol=1e-5, atol=1e-6)
    assert data.class_names == ("ill", "well")
    assert data.train_targets.tolist() == [int(COLUMNS["outcome"][row] == "well") for row in TRAIN]
    assert data.train_users.tolist() == [row % 4 for row in TRAIN]
    assert data.max_value is None


def test_one_file_is_split_by_class_and_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv")
    data, again, other = (load(path, seed=seed, **CHOSEN) for seed in (0, 0, 1))
    assert np.bincount(data.train_targets).tolist() == [8, 24]
    assert np.bincount(data.test_targets).tolist() == [2, 6]
    assert data.digest == again.digest != other.digest
    assert len(load(path, test_share=0.5, **CHOSEN).test_targets) == 20


def test_csv_and_parquet_of_the_same_rows_are_the_same_data(tmp_path: Path) -> None:
    digests = [load(write(tmp_path / f"all{suffix}"), **CHOSEN).digest for suffix in (".csv", ".parquet")]
    digests.append(load(write(tmp_path / "other.csv", delimiter=";"), delimiter=";", **CHOSEN).digest)
    assert len(set(digests)) == 1


def test_every_row_is_either_trained_on_or_tested(tmp_path: Path) -> None:
    columns = {"number": list(range(ROWS)), "target": [row % 2 for row in range(ROWS)]}
    data = load(write(tmp_path / "all.csv", columns), target="target")
    values = np.concatenate([data.train_inputs, data.test_inputs])[:, 0]
    assert len(np.unique(values)) == ROWS


def test_texts_that_no_training_row_has_have_no_feature(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", {"town": ["Ulm", "Bonn"], "y": [0, 1]})
    write(tmp_path / "test.csv", {"town": ["Bonn", "Jena"], "y": [0, 1]})
    data = load(tmp_path, target="y")
    assert data.train_inputs.tolist() == [[0, 1], [1, 0]]
    assert data.test_inputs.tolist() == [[1, 0], [0, 0]]


def test_missing_texts_are_a_category_and_missing_truths_the_frequent_value(tmp_path: Path) -> None:
    columns = {"town": ["Ulm", None, "Ulm", "Ulm"], "open": [True, True, None, False], "y": [0, 1, 0, 1]}
    write(tmp_path / "train.parquet", columns)
    write(tmp_path / "test.parquet", columns)
    assert load(tmp_path, target="y").train_inputs.tolist() == [[1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0, 1] * 20, ()),
        ([3, 5] * 20, ("3", "5")),
        ([0.0, 1.0] * 20, ()),
        ([False, True] * 20, ()),
        (["b", "a"] * 20, ("a", "b")),
    ],
)
def test_classes_are_numbers_truths_or_texts(tmp_path: Path, values: list[object], names: tuple[str, ...]) -> None:
    data = load(write(tmp_path / "all.parquet", {"x": list(range(ROWS)), "y": values}), target="y")
    assert data.num_classes == 2
    assert data.class_names == names


def test_several_targets_are_labels_or_numbers(tmp_path: Path) -> None:
    columns = {
        "x": list(range(ROWS)),
        "a": [row % 2 for row in range(ROWS)],
        "b": [row % 3 == 0 for row in range(ROWS)],
    }
    path = write(tmp_path / "all.csv", columns)
    labels = load(path, "multilabel", target=["a", "b"])
    assert labels.num_classes == 2
    assert set(np.unique(labels.train_targets)) == {0, 1}
    numbers = load(path, "regression", target="x")
    assert numbers.train_targets.shape == (32, 1)
    assert sorted([*numbers.train_targets[:, 0], *numbers.test_targets[:, 0]]) == list(range(ROWS))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "outcom"}, "data.options.target='outcom' is no column of the data; nearest: outcome, "),
        ({"target": None}, "data.options.target names no column; allowed: age, clinic, outcome, smokes, town, or"),
        ({"target": 3}, "data.options.target=3 is not allowed; allowed: the name of a column"),
        ({"user": "clnic"}, "data.options.user='clnic' is no column of the data; nearest: clinic"),
        ({"user": ["clinic"]}, r"data.options.user=\['clinic'\] is not allowed; allowed: the name of a column"),
        ({"drop": ["nte"]}, "data.options.drop='nte' is no column of the data; nearest: note"),
        ({"drop": ["note", "note"]}, r"data.options.drop=\['note', 'note'\] is not allowed"),
        ({"drop": "outcome"}, "data.options.drop='outcome' is not allowed: data.options.target names that column"),
        ({"drop": ["age", "town", "smokes", "note", "weight"]}, "has no column of inputs"),
        ({"target": "age"}, "data.options.target='age' has 1 rows without a value"),
        (
            {"target": "weight", "drop": None},
            "data.options.target='weight' holds numbers that are not whole, such as",
        ),
        ({"target": "note", "drop": None}, "data.options.target='note': class 'row 0' has one row"),
        ({"target": ["outcome", "smokes"]}, r"data.options.target=\['outcome', 'smokes'\] is not allowed with task"),
        ({"test_share": 1}, r"data.options.test_share=1 is not in \(0, 1\)"),
        ({"test_share": "half"}, r"data.options.test_share='half' is not in \(0, 1\)"),
        ({"delimiter": ";;"}, "data.options.delimiter=';;' is not allowed; allowed: one character"),
        ({"targets": "outcome"}, "data.options.targets='outcome' is unknown; data.name='table' takes: target, "),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, object], said: str) -> None:
    path = write(tmp_path / "all.csv")
    with pytest.raises(SettingError, match=said):
        load(path, **(CHOSEN | options))


@pytest.mark.parametrize(
    ("task", "target", "said"),
    [
        ("regression", "outcome", "data.options.target='outcome' holds texts; allowed with task.name='regression'"),
        ("multilabel", "weight", "are not allowed with task.name='multilabel'; allowed: 0 and 1"),
        ("segmentation", "outcome", "task.name='segmentation' is not allowed with data.name='table'; allowed: class"),
    ],
)
def test_targets_of_another_task_are_refused(tmp_path: Path, task: str, target: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        load(write(tmp_path / "all.csv"), task, target=target)


def test_a_share_without_effect_is_refused(folder: Path) -> None:
    with pytest.raises(SettingError, match=r"data.options.test_share=0.3 has no effect"):
        load(folder, test_share=0.3, **CHOSEN)


REFUSED: dict[str, tuple[dict[str, list[object]], dict[str, list[object]], str]] = {
    "other columns": ({"x": [1, 2], "y": [0, 1]}, {"y": [0, 1]}, r"lacks the columns \['x'\]"),
    "other kinds": (
        {"x": [1, 2], "y": [0, 1]},
        {"x": ["a", "b"], "y": [0, 1]},
        "column 'x' holds numbers in one file and texts in the other",
    ),
    "no value": (
        {"x": [None, None], "y": [0, 1]},
        {"x": [1, 2], "y": [0, 1]},
        "column 'x' has no value in the training rows",
    ),
    "not finite": (
        {"x": [float("inf"), 1], "y": [0, 1]},
        {"x": [1.5, 2], "y": [0, 1]},
        "column 'x' holds infinite numbers",
    ),
    "dates": (
        {"x": ["2020-01-01", "2020-01-02"], "y": [0, 1]},
        {"x": ["2020-01-01", "2020-01-02"], "y": [0, 1]},
        r"column 'x' holds values of type date32\[day\]",
    ),
    "a class without training rows": (
        {"x": [1, 2], "y": [0, 1]},
        {"x": [1, 2, 3], "y": [0, 1, 2]},
        "classes numbered from 0 without a gap|class 2 has no row in the training split",
    ),
    "no name": ({"": [1, 2], "y": [0, 1]}, {"": [1, 2], "y": [0, 1]}, "has a column without a name"),
    "no rows": ({"x": [1, 2], "y": [0, 1]}, {"x": [], "y": []}, "has a table without rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    train, test, said = REFUSED[case]
    write(tmp_path / "train.csv", train)
    write(tmp_path / "test.csv", test)
    with pytest.raises(SettingError, match=said):
        load(tmp_path, target="y")


def test_a_column_of_one_file_may_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", {"x": [1, 2], "y": [0, 1], "extra": [1, 2]})
    write(tmp_path / "test.csv", {"x": [1, 2], "y": [0, 1]})
    assert load(tmp_path, target="y", drop="extra").train_inputs.shape == (2, 1)


def test_many_texts_are_no_categories(tmp_path: Path) -> None:
    columns = {"name": [f"name {row}" for row in range(3000)], "y": [row % 2 for row in range(3000)]}
    with pytest.raises(SettingError, match="column 'name' holds 2,400 different texts; allowed: at most 1,000"):
        load(write(tmp_path / "all.csv", columns), target="y")


def test_users_must_be_known(tmp_path: Path) -> None:
    columns = {"x": list(range(10)), "y": [0, 1] * 5, "who": [None] * 10}
    with pytest.raises(SettingError, match=r"data.options.user='who' has training rows without a value"):
        load(write(tmp_path / "all.parquet", columns), target="y", user="who")


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data.root=null is not allowed with data.name='table'"):
        load(None, target="y")
    with pytest.raises(SettingError, match=r"nothing.csv' cannot be read: No such file"):
        load(tmp_path / "nothing.csv", target="y")
    with pytest.raises(SettingError, match=r"holds \[\]; allowed: a .csv or .parquet file, or a folder"):
        load(tmp_path, target="y")
    (tmp_path / "a.txt").write_text("x,y\n1,2\n")
    with pytest.raises(SettingError, match=r"a.txt' is no table; allowed: a .csv or .parquet file"):
        load(tmp_path / "a.txt", target="y")
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3\n")
    with pytest.raises(SettingError, match=r"a.csv' cannot be read as .csv: .*Expected 2 columns, got 1"):
        load(tmp_path / "a.csv", target="y")
    (tmp_path / "a.csv").write_bytes(b"x,y\n\xff\xfe,2\n1,2\n")
    with pytest.raises(SettingError, match=r"a.csv': column 'x' holds values of type binary"):
        load(tmp_path / "a.csv", target="y")
    (tmp_path / "a.csv").write_text("x,x,y\n1,2,3\n")
    with pytest.raises(SettingError, match="has the column 'x' more than once"):
        load(tmp_path / "a.csv", target="y")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(SettingError, match=r"a.parquet' cannot be read as .parquet"):
        load(tmp_path / "a.parquet", target="y")


def test_parquet_of_lists_and_of_more_rows_than_memory_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "lists.parquet", {"x": [[1], [2]], "y": [0, 1]})
    with pytest.raises(SettingError, match="column 'x' holds lists or records"):
        load(path, target="y")
    path = write(tmp_path / "long.parquet", {"x": [1] * 200_000, "y": [0, 1] * 100_000})
    monkeypatch.setattr("raysim.core.memory.total_bytes", lambda: 1_000_000)
    with pytest.raises(SettingError, match="has 200,000 rows; allowed: at most 62,500"):
        load(path, target="y")


def test_download_has_no_effect() -> None:
    with pytest.raises(SettingError, match=r"data.download=true has no effect"):
        table(raw.Source("table", "a.csv", download=True), target="y")
