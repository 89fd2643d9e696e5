"""Data sets in the JSON of LEAF."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.data.leaf_sets import LETTERS
from raysim.data.splits import DataSplits
from raysim.simulation.build import build_scenario
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.planned import state_after

Users = dict[str, tuple[list[Any], list[Any]]]
RNG = np.random.default_rng(0)


def pixels(count: int) -> list[list[float]]:
    return RNG.random((count, 784)).round(4).tolist()


def tweet(text: str) -> list[str]:
    return ["1467", "Mon Apr 06", "NO_QUERY", "ann", text, "training"]


TRAIN: dict[str, Users] = {
    "femnist": {"f2": (pixels(3), [0, 1, 61]), "f1": (pixels(2), [1, 0]), "f0": ([], [])},
    "shakespeare": {"HAMLET": (["To be, ", "be or n"], ["o", "o"]), "ADAM": (["~ooo{o}"], ["|"])},
    "sent140": {
        "ann": ([tweet("I LOVE it, love it!"), tweet("so bad")], [4, 0]),
        "bob": ([tweet("love love")], [1]),
    },
    "reddit": {
        "r1": (
            [[["<BOS>", "a", "cat", "a"], ["dog", "<PAD>", "<PAD>", "<PAD>"]], [["<BOS>", "a", "dog", "<EOS>"]]],
            [
                {"target_tokens": [["a", "cat", "a", "dog"], ["<EOS>", "<PAD>", "<PAD>", "<PAD>"]], "score": 1},
                {"target_tokens": [["a", "dog", "<EOS>", "<PAD>"]], "subreddit": "s"},
            ],
        ),
        "r0": ([[["<BOS>", "cat", "<EOS>", "<PAD>"]]], [{"target_tokens": [["cat", "<EOS>", "<PAD>", "<PAD>"]]}]),
    },
}
TEST: dict[str, Users] = {
    "femnist": {"f1": (pixels(2), [1, 5])},
    "shakespeare": {"ADAM": (["or not "], ["t"])},
    "sent140": {"ann": ([tweet("love unseen")], [0]), "zoe": ([tweet("bad")], [4])},
    "reddit": {
        "r1": (
            [[["<BOS>", "a", "bird", "<EOS>"], ["<PAD>"] * 4]],
            [{"target_tokens": [["a", "bird", "<EOS>", "<PAD>"], ["<PAD>"] * 4]}],
        )
    },
}
TASKS = {
    "femnist": "classification", "shakespeare": "classification", "sent140": "classification", "reddit": "next-token"
}  # fmt: skip


def content(users: Users) -> dict[str, Any]:
    return {
        "users": list(users),
        "num_samples": [len(targets) for _, targets in users.values()],
        "user_data": {user: {"x": samples, "y": targets} for user, (samples, targets) in users.items()},
    }


def write(path: Path, written: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(written if isinstance(written, str) else json.dumps(written), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of the set that the parameter names."""
    write(tmp_path / "train" / "all_data_0.json", content(TRAIN[request.param]))
    write(tmp_path / "test" / "all_data_0.json", content(TEST[request.param]))
    return tmp_path


def load(root: Path | None, task: str, **options: object) -> DataSplits:
    return datasets.load("leaf", None if root is None else str(root), False, None, 0, options, task=task)


@pytest.mark.parametrize("root", ["femnist"], indirect=True)
def test_writers_have_images(root: Path) -> None:
    data = load(root, "classification")
    assert data.train_inputs.shape == (5, 1, 28, 28)
    assert (data.num_classes, data.max_value) == (62, 1)
    expected = np.array(TRAIN["femnist"]["f2"][0], np.float32).reshape(-1, 1, 28, 28)
    np.testing.assert_array_equal(data.train_inputs[:3], expected)
    assert data.train_targets.tolist() == [0, 1, 61, 1, 0]
    assert data.test_targets.tolist() == [1, 5]
    assert data.train_users.tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("root", ["shakespeare"], indirect=True)
def test_roles_have_texts_and_the_character_that_follows(root: Path) -> None:
    data = load(root, "classification")
    assert len(LETTERS) == len(set(LETTERS)) == 80
    assert data.num_classes == data.vocabulary == 81
    assert "".join(LETTERS[index] for index in data.train_inputs[:2].ravel()) == "To be, be or n"
    assert data.train_inputs[2].tolist() == [80, *[LETTERS.index("o")] * 3, 80, LETTERS.index("o"), 79]
    assert data.train_targets.tolist() == [LETTERS.index("o"), LETTERS.index("o"), 80]
    assert data.train_users.tolist() == [1, 1, 0]


@pytest.mark.parametrize("root", ["shakespeare"], indirect=True)
def test_roles_have_the_character_that_follows_at_every_position(root: Path) -> None:
    data = load(root, "next-token", set="shakespeare")
    assert data.train_targets.shape == (3, 7)
    assert "".join(LETTERS[index] for index in data.train_targets[0]) == "o be, o"
    np.testing.assert_array_equal(data.train_inputs[:, 1:], data.train_targets[:, :-1])


@pytest.mark.parametrize("root", ["sent140"], indirect=True)
def test_tweets_are_padded_ids_of_the_frequent_words(root: Path) -> None:
    data = load(root, "classification", words=3, length=4)
    assert data.vocabulary == 5  # padding, other words, and love 4 times, it twice, ! before the other words
    assert data.num_classes == 2
    love, it, other = 2, 3, 1
    assert data.train_inputs.tolist() == [[other, love, it, other], [other, other, 0, 0], [love, love, 0, 0]]
    assert data.train_targets.tolist() == [1, 0, 1]
    assert data.test_inputs.tolist() == [[love, other, 0, 0], [other, 0, 0, 0]]
    assert load(root, "classification").input_shape == (25,)


@pytest.mark.parametrize("root", ["reddit"], indirect=True)
def test_comments_have_the_words_that_follow_and_ignore_padding(root: Path) -> None:
    data = load(root, "next-token", words=2)
    begin, end, a, cat, other = 2, 3, 4, 5, 1
    assert data.vocabulary == data.num_classes == 6
    assert data.train_inputs.tolist() == [
        [begin, a, cat, a],
        [other, 0, 0, 0],
        [begin, a, other, end],
        [begin, cat, end, 0],
    ]
    assert data.train_targets.tolist() == [
        [a, cat, a, other],
        [end, -100, -100, -100],
        [a, other, end, -100],
        [cat, end, -100, -100],
    ]
    assert data.test_targets.tolist() == [[a, other, end, -100]]
    assert data.train_users.tolist() == [1, 1, 1, 0]


def test_users_are_in_several_files(tmp_path: Path) -> None:
    for index, user in enumerate(TRAIN["femnist"]):
        write(tmp_path / "train" / f"{index}.json", content({user: TRAIN["femnist"][user]}))
    write(tmp_path / "train" / "3.json", content({"f2": (pixels(1), [7])}))
    write(tmp_path / "test" / "0.json", content(TEST["femnist"]))
    data = load(tmp_path, "classification")
    assert data.train_users.tolist() == [1, 1, 1, 0, 0, 1]
    assert data.train_targets.tolist() == [0, 1, 61, 1, 0, 7]


@pytest.mark.parametrize("root", ["femnist"], indirect=True)
def test_a_subset_does_not_need_every_class(root: Path) -> None:
    data = datasets.load("leaf", str(root), False, 3, 0)
    assert sorted(data.train_targets.tolist()) == [0, 1, 61]


def test_a_round_trains_each_user_with_balanced_weights_of_the_classes_that_there_are(tmp_path: Path) -> None:
    users: Users = {f"f{user}": (pixels(6), [user, user, user, 60, 61, 60]) for user in range(20)}
    write(tmp_path / "train" / "a.json", content(users))
    write(tmp_path / "test" / "a.json", content(TEST["femnist"]))
    settings = tiny_settings(
        "data.name=leaf",
        f"data.root={tmp_path}",
        "data.partition={name: natural}",
        "training.class_weights=balanced",
    )
    scenario = build_scenario(settings)
    weights = scenario.workload.task.training_loss.class_weights
    assert len(weights) == 62
    assert np.isfinite(weights).all()
    assert weights[30] == max(weights)
    state = state_after(scenario, 1)
    before = initial_state(scenario).params
    assert all(torch.isfinite(each).all() for each in state.params.values())
    assert any((state.params[name] != before[name]).any() for name in before)


FEMNIST = content(TRAIN["femnist"])
ONE = pixels(1)
DAMAGED: dict[str, tuple[object, str]] = {
    "no JSON": ('{"users": [', "train/a.json is no JSON: JSONDecodeError"),
    "a list": ([1, 2], "train/a.json is no file of LEAF; allowed: users, num_samples and user_data"),
    "no data": ({"users": ["f1"]}, "train/a.json is no file of LEAF"),
    "another user": (FEMNIST | {"users": ["f1", "f2", "f9"]}, "has other names in users than in user_data"),
    "a number too few": (FEMNIST | {"num_samples": [3]}, "has not one number of samples for each of 3 users"),
    "samples are cut off": (
        FEMNIST | {"num_samples": [4, 2, 0]},
        "user 'f2' has 3 samples, and num_samples says 4; allowed: complete files",
    ),
    "no targets": (FEMNIST | {"user_data": {user: {"x": []} for user in TRAIN["femnist"]}}, "has not one target y"),
    "a target too few": (content({"f": (pixels(2), [1])}), "user 'f' has not one target y for each sample x"),
    "no samples": (content({"f": ([], [])}), "has no train rows; allowed: samples in train/"),
    "too few pixels": (content({"f": ([[0.5] * 783], [1])}), "user 'f' has samples x that are not 784 numbers"),
    "too bright": (content({"f": ([[2.0] * 784], [1])}), r"has samples x that are not 784 numbers in \[0, 1\]"),
    "a text as pixel": (content({"f": ([["a"] * 784], [1])}), "has samples that are not of the set: ValueError"),
    "unknown classes": (content({"f": (ONE, [62])}), "has targets y that are no classes from 0 to 61"),
    "texts as classes": (content({"f": (ONE, ["a"])}), "has targets y that are no classes from 0 to 61"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_in_one_message(tmp_path: Path, case: str) -> None:
    written, said = DAMAGED[case]
    write(tmp_path / "train" / "a.json", written)
    write(tmp_path / "test" / "a.json", content(TEST["femnist"]))
    with pytest.raises(SettingError, match=rf"^data.root=.*{said}"):
        load(tmp_path, "classification", set="femnist")


SAMPLES: dict[str, tuple[str, str, Users, str]] = {
    "a number as text": ("shakespeare", "classification", {"u": ([3], ["a"])}, "samples x that are no texts of one"),
    "unequal texts": ("shakespeare", "classification", {"u": (["a", "ab"], ["a", "b"])}, "no texts of one length"),
    "unequal users": (
        "shakespeare",
        "classification",
        {"u": (["a"], ["a"]), "v": (["ab"], ["b"])},
        r"texts x of \[1, 2\]",
    ),
    "two letters": (
        "shakespeare",
        "next-token",
        {"u": (["ab"], ["ab"])},
        "targets y that are not one character each",
    ),
    "a tweet without text": ("sent140", "classification", {"u": ([["1", "2"]], [4])}, "without a text as their 5th"),
    "a neutral tweet": ("sent140", "classification", {"u": ([tweet("a")], [2])}, "the target y 2; allowed: 0, and 4"),
    "words": ("reddit", "next-token", {"u": ([["a"]], [{"target_tokens": [["a"]]}])}, "no lists of lists of words"),
    "no tokens": ("reddit", "next-token", {"u": ([[["a"]]], [{"tokens": [["a"]]}])}, "no lists of lists of words"),
    "fewer targets": (
        "reddit",
        "next-token",
        {"u": ([[["a", "b"]]], [{"target_tokens": [["a"]]}])},
        "not as long as the target_tokens",
    ),
    "unequal sequences": (
        "reddit",
        "next-token",
        {"u": ([[["a", "b"], ["a"]]], [{"target_tokens": [["a", "b"], ["a"]]}])},
        r"sequences of \[1, 2\] words",
    ),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_of_another_form_are_refused(tmp_path: Path, case: str) -> None:
    name, task, users, said = SAMPLES[case]
    for split in ("train", "test"):
        write(tmp_path / split / "a.json", content(users))
    with pytest.raises(SettingError, match=rf"^data.root.*{said}"):
        load(tmp_path, task, set=name)


@pytest.mark.parametrize("root", ["sent140"], indirect=True)
@pytest.mark.parametrize(
    ("options", "task", "said"),
    [
        ({"set": "sent14"}, "classification", "data.options.set='sent14' is unknown; known: sent140, "),
        ({"words": 0}, "classification", "data.options.words=0 is not allowed; allowed: a whole number from 1"),
        ({"length": "a"}, "classification", "data.options.length='a' is not allowed; allowed: a whole number"),
        ({"length": 2**60}, "classification", "data.options.length=1152921504606846976 is not allowed"),
        ({}, "next-token", "task.name='next-token' is not allowed with data.name='leaf'; allowed: classification"),
        ({"set": "femnist"}, "classification", "data.root=.*user 'ann' has samples that are not of the set"),
        (
            {"set": "femnist", "words": 9},
            "classification",
            "data.options.words=9 has no effect with the set 'femnist'",
        ),
        ({"users": 9}, "classification", "data.options.users=9 is unknown; data.name='leaf' takes: "),
    ],
)
def test_options_that_do_not_fit_are_refused(root: Path, options: dict[str, object], task: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        load(root, task, **options)


def test_folders_that_are_not_of_leaf_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data.root=null is not allowed with data.name='leaf'"):
        load(None, "classification")
    with pytest.raises(SettingError, match=r"has no file train/\*.json; allowed: a folder that holds train"):
        load(tmp_path, "classification")
    for split in ("train", "test"):
        write(tmp_path / split / "a.json", content({"u": ([7], [1])}))
    with pytest.raises(
        SettingError, match=r"data.options.set=null is not allowed: .*a.json holds samples as 7; allowed"
    ):
        load(tmp_path, "classification")
