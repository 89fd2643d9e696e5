"""The data sets of LEAF: how samples of each become arrays."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, shortened
from raysim.data.raw import RawData
from raysim.task.targets import IGNORED

PIXELS = 28
NUM_WRITTEN = 62
"""Classes of FEMNIST: digits, upper and lower case letters."""
LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's letters of Shakespeare, in the order of its ids."""
OTHER_LETTER = len(LETTERS)
TEXT_OF_TWEET = 4
"""Place of the text in a sample of Sent140."""
POSITIVE = {0: 0, 1: 1, 4: 1}
"""Classes by what is written for a tweet: Sentiment140 writes 4 where LEAF writes 1."""
WORD = re.compile(r"[\w']+|[.,!?;]")
"""A word as LEAF splits tweets."""
PADDING, OTHER_WORD = 0, 1
PAD, BOS, EOS = "<PAD>", "<BOS>", "<EOS>"


@dataclass(frozen=True, slots=True, eq=False)
class UserRows:
    """Rows of a user.

    Attributes:
        user: The user's name.
        inputs: Inputs, in the form of the set.
        targets: Their targets.
    """

    user: str
    inputs: Any
    targets: Any

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class LeafSet:
    """A data set of LEAF.

    Attributes:
        tasks: Names of the tasks that it has targets for.
        recognises: Whether a sample may be of this set.
        parsed: Returns inputs and targets of a user's rows, from `(what, samples, targets, task)`.
        joined: Returns the data set from the rows of both splits, and the options by name.
        options: Names of the options that it reads.
    """

    tasks: tuple[str, ...]
    recognises: Callable[[Any], bool]
    parsed: Callable[[str, list[Any], list[Any], str], tuple[Any, Any]]
    joined: Callable[..., RawData]
    options: tuple[str, ...] = ()


def _written(what: str, samples: list[Any], targets: list[Any], task: str) -> tuple[NDArray[Any], NDArray[Any]]:
    images, classes = np.asarray(samples, np.float32), np.asarray(targets)
    if images.shape != (len(samples), PIXELS**2) or not ((images >= 0) & (images <= 1)).all():
        raise SettingError(f"{what} has samples x that are not {PIXELS**2} numbers in [0, 1]")
    if classes.dtype.kind != "i" or classes.ndim != 1 or classes.min() < 0 or classes.max() >= NUM_WRITTEN:
        raise SettingError(f"{what} has targets y that are no classes from 0 to {NUM_WRITTEN - 1}")
    return images.reshape(-1, 1, PIXELS, PIXELS), classes.astype(np.int64)


def _letters(what: str, samples: list[Any], targets: list[Any], task: str) -> tuple[NDArray[Any], NDArray[Any]]:
    if not all(isinstance(text, str) and text for text in samples) or len({len(text) for text in samples}) > 1:
        raise SettingError(f"{what} has samples x that are no texts of one length")
    if not all(isinstance(letter, str) and len(letter) == 1 for letter in targets):
        raise SettingError(f"{what} has targets y that are not one character each")
    number = {letter: index for index, letter in enumerate(LETTERS)}
    inputs = np.array([[number.get(letter, OTHER_LETTER) for letter in text] for text in samples], np.int64)
    following = np.array([number.get(letter, OTHER_LETTER) for letter in targets], np.int64)
    if task == "classification":
        return inputs, following
    return inputs, np.concatenate([inputs[:, 1:], following[:, None]], axis=1)


def _tweets(what: str, samples: list[Any], targets: list[Any], task: str) -> tuple[list[list[str]], NDArray[Any]]:
    if not all(_is_tweet(sample) for sample in samples):
        raise SettingError(f"{what} has samples x without a text as their {TEXT_OF_TWEET + 1}th entry")
    classes = [POSITIVE.get(int(target)) if str(target) in ("0", "1", "4") else None for target in targets]
    if None in classes:
        wrong = shortened(targets[classes.index(None)])
        raise SettingError(f"{what} has the target y {wrong}; allowed: 0, and 4 or 1")
    return [WORD.findall(sample[TEXT_OF_TWEET].lower()) for sample in samples], np.array(classes, np.int64)


def _is_tweet(sample: Any) -> bool:
    return isinstance(sample, list) and len(sample) > TEXT_OF_TWEET and isinstance(sample[TEXT_OF_TWEET], str)


def _comments(what: str, samples: list[Any], targets: list[Any], task: str) -> tuple[list[Any], list[Any]]:
    """Return sequences of words and of those that follow; a sequence that follows with padding alone is left out."""
    inputs, following = [], []
    for sample, target in zip(samples, targets, strict=True):
        tokens: Any = target.get("target_tokens") if isinstance(target, dict) else None
        if not _are_sequences(sample) or not _are_sequences(tokens):
            raise SettingError(f"{what} has samples x, or target_tokens of y, that are no lists of lists of words")
        if [len(each) for each in sample] != [len(each) for each in tokens]:
            raise SettingError(f"{what} has samples x that are not as long as the target_tokens of their y")
        for before, after in zip(sample, tokens, strict=True):
            if any(word != PAD for word in after):
                inputs.append(before)
                following.append(after)
    return inputs, following


def _are_sequences(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list) and all(isinstance(word, str) for word in each) for each in value
    )


def _joined_images(train: Sequence[UserRows], test: Sequence[UserRows]) -> RawData:
    return RawData(*_concatenated(train), *_concatenated(test), max_value=1, num_outputs=NUM_WRITTEN)


def _joined_letters(train: Sequence[UserRows], test: Sequence[UserRows]) -> RawData:
    size = len(LETTERS) + 1
    lengths = {each.inputs.shape[1] for each in (*train, *test)}
    if len(lengths) > 1:
        raise SettingError(f"data.root holds texts x of {sorted(lengths)[:5]} characters; allowed: all of one length")
    return RawData(*_concatenated(train), *_concatenated(test), max_value=None, num_outputs=size, vocabulary=size)


def _concatenated(rows: Sequence[UserRows]) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.concatenate([each.inputs for each in rows]), np.concatenate([each.targets for each in rows])


def _joined_tweets(train: Sequence[UserRows], test: Sequence[UserRows], words: int, length: int) -> RawData:
    number = numbered((tweet for each in train for tweet in each.inputs), words, ())
    size = len(number) + 2
    rows = sum(each.count for each in (*train, *test))
    memory.check_fits("data.options.length", length, 8 * length * rows)
    arrays: list[NDArray[np.int64]] = []
    for split in (train, test):
        inputs = np.full((sum(each.count for each in split), length), PADDING, np.int64)
        for row, tweet in enumerate(tweet for each in split for tweet in each.inputs):
            ids = [number.get(word, OTHER_WORD) for word in tweet[:length]]
            inputs[row, : len(ids)] = ids
        arrays += [inputs, np.concatenate([each.targets for each in split])]
    return RawData(arrays[0], arrays[1], arrays[2], arrays[3], max_value=None, num_outputs=2, vocabulary=size)


def _joined_comments(train: Sequence[UserRows], test: Sequence[UserRows], words: int) -> RawData:
    number = numbered((sequence for each in train for sequence in each.inputs), words, (BOS, EOS))
    size = len(number) + 2
    lengths = {len(sequence) for each in (*train, *test) for sequence in each.inputs}
    if len(lengths) > 1:
        raise SettingError(f"data.root holds sequences of {sorted(lengths)[:5]} words; allowed: all of one length")
    number |= {PAD: PADDING}
    arrays: list[NDArray[np.int64]] = []
    for split in (train, test):
        inputs, targets = (
            np.array(
                [
                    [number.get(word, OTHER_WORD) for word in sequence]
                    for each in split
                    for sequence in getattr(each, what)
                ],
                np.int64,
            )
            for what in ("inputs", "targets")
        )
        arrays += [inputs, np.where(targets == PADDING, IGNORED, targets)]
    return RawData(arrays[0], arrays[1], arrays[2], arrays[3], max_value=None, num_outputs=size, vocabulary=size)


def numbered(sequences: Iterable[Iterable[str]], words: int, first: tuple[str, ...]) -> dict[str, int]:
    """Return ids from 2 of words: some first, then the most frequent ones, equally frequent ones by the alphabet.

    >>> numbered([["a", "b", "<EOS>"], ["b", "<PAD>"]], 2, ("<EOS>",))
    {'<EOS>': 2, 'b': 3, 'a': 4}
    """
    counts = Counter(word for sequence in sequences for word in sequence)
    for word in (*first, PAD):
        counts.pop(word, None)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    return {word: index for index, word in enumerate((*first, *frequent), start=2)}


def _are_pixels(sample: Any) -> bool:
    return isinstance(sample, list) and len(sample) == PIXELS**2 and isinstance(sample[0], (int, float))


SETS: dict[str, LeafSet] = {
    "femnist": LeafSet(("classification",), _are_pixels, _written, _joined_images),
    "shakespeare": LeafSet(
        ("classification", "next-token"), lambda sample: isinstance(sample, str), _letters, _joined_letters
    ),
    "sent140": LeafSet(("classification",), _is_tweet, _tweets, _joined_tweets, ("words", "length")),
    "reddit": LeafSet(
        ("next-token",),
        lambda sample: _are_sequences(sample) and len(sample) > 0,
        _comments,
        _joined_comments,
        ("words",),
    ),
}
"""The data sets by the names of their folders in LEAF."""
