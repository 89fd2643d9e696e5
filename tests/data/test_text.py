"""Texts as windows of tokens with the next one as target."""

from pathlib import Path

import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.data import datasets

PLAY = "HAMLET.\nTo be, or not to be.\nOPHELIA.\nGood my lord.\nHAMLET.\nThe rest is silence.\n"


def load(root: Path | None, name: str = "text", task: str = "next-token", **options: object) -> datasets.DataSplits:
    return datasets.load(name, None if root is None else str(root), False, None, 0, options, task=task)


@pytest.fixture
def play(tmp_path: Path) -> Path:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    return tmp_path


def test_windows_hold_the_text_and_targets_the_next_character(play: Path) -> None:
    data = load(play / "play.txt", length=4, test_share=0.2)
    letters = sorted(set(PLAY))
    assert data.num_classes == data.vocabulary == len(letters)
    assert data.input_shape == (4,)
    read = "".join(letters[index] for index in data.train_inputs.ravel())
    follow = "".join(letters[index] for index in data.train_targets.ravel())
    assert PLAY.startswith(read)
    assert read[1:] == follow[:-1]
    tested = "".join(letters[index] for index in data.test_inputs.ravel())
    assert tested in PLAY[-round(0.2 * len(PLAY)) :]


def test_a_pattern_begins_users_and_names_them(play: Path) -> None:
    data = load(play, length=2, users=r"^([A-Z]+)\.$", test_share=0.2)
    assert set(data.train_users.tolist()) == {0, 1}
    hamlet = data.train_inputs[data.train_users == 0]
    assert "Good" not in "".join(sorted(set(PLAY))[index] for index in hamlet.ravel())


def test_bytes_have_a_vocabulary_of_256_whatever_the_text(play: Path) -> None:
    data = load(play, length=7, unit="bytes")
    assert data.vocabulary == data.num_classes == 256
    assert bytes(data.train_inputs[0].tolist()).decode() == PLAY[:7]


def test_every_file_is_a_user(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(name[0] * 50, encoding="utf-8")
    data = load(tmp_path, length=4)
    assert data.train_users.tolist() == [0] * 11 + [1] * 11
    assert data.train_inputs[0].tolist() == [0, 0, 0, 0]
    assert data.train_inputs[11].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 0}, "data.options.length=0 is not allowed; allowed: a whole number from 1"),
        ({"length": 60}, "data.options.length=60 is not allowed: the texts make 1 training and 0 test windows"),
        ({"unit": "charcters"}, "data.options.unit='charcters' is not allowed; allowed: characters"),
        ({"test_share": 1}, r"data.options.test_share=1 is not in \(0, 1\)"),
        ({"users": "("}, r"data.options.users='\(' is neither 'file' nor a regular expression"),
        ({"users": "LEAR"}, "data.options.users='LEAR' matches nowhere"),
        ({"pattern": "*.md"}, r"has no file that fits data.options.pattern='\*.md'"),
        ({"size": 3}, "data.options.size=3 is unknown"),
    ],
)
def test_options_that_do_not_fit_are_refused(play: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        load(play, **options)


def test_texts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data.root=null is not allowed"):
        load(None)
    with pytest.raises(SettingError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match=r"'a.txt' is no text in UTF-8"):
        load(tmp_path)
    with pytest.raises(SettingError, match=r"task.name='classification' is not allowed with data.name"):
        load(None, "python-source", "classification")


def test_python_source_has_a_user_for_each_module_and_a_digest() -> None:
    data, again = (load(None, "python-source", users=5) for _ in range(2))
    assert set(data.train_users.tolist()) == set(range(5))
    assert data.digest == again.digest
    assert data.digest != load(None, "python-source", users=4).digest
    inputs, targets = data.train_rows(np.arange(3))
    assert inputs.dtype == targets.dtype
    assert inputs.shape == targets.shape == (3, 64)


def test_the_example_holds_the_largest_token_of_the_test_rows() -> None:
    data = load(None, "python-source", users=5)
    inputs, _ = data.example()
    assert int(inputs.max()) == int(data.test_inputs.max())


@pytest.mark.parametrize("pattern", ["/tmp/*.txt", 5, ""])
def test_a_pattern_of_files_lies_below_the_folder(play: Path, pattern: object) -> None:
    with pytest.raises(SettingError, match=r"data.options.pattern=.* is not allowed; allowed: a pattern below"):
        load(play, pattern=pattern)


def test_a_user_whose_group_did_not_match_has_an_empty_name(play: Path) -> None:
    data = load(play, length=1, users=r"^(HAM)?[A-Z]+\.$", test_share=0.3)
    assert set(data.train_users.tolist()) == {0, 1}


def test_extremes_hold_the_largest_tokens_of_both_splits(play: Path) -> None:
    data = load(play, length=2, test_share=0.2)
    inputs, targets = data.extremes()
    assert int(inputs.max()) == max(int(data.train_inputs.max()), int(data.test_inputs.max()))
    assert int(targets.max()) == max(int(data.train_targets.max()), int(data.test_targets.max()))
