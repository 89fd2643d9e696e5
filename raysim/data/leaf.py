"""Read data sets in the JSON of LEAF: users with their samples, in files of training and test rows."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.errors import SettingError, nearest_first, refusing, shortened
from raysim.core.json_text import json_in
from raysim.core.storage import user_files
from raysim.data.files import regular
from raysim.data.leaf_sets import SETS, LeafSet, UserRows
from raysim.data.raw import RawData, Source, check_task

SPLITS = ("train", "test")
MOST_WORDS = 2**24
DEFAULTS = {"words": 10_000, "length": 25}
MOST = {"words": MOST_WORDS, "length": 2**16}


def leaf(source: Source, set: str | None = None, words: int | None = None, length: int | None = None) -> RawData:
    """Return a data set of LEAF below `data.root`, in `train/*.json` and `test/*.json`; its users are natural users.

    - `femnist`: 784 numbers in [0, 1] become images of 28 x 28 pixels; 62 classes.
    - `shakespeare`: a text and the character that follows, as class (`classification`) or as the last of the targets
      of all positions (`next-token`). Ids are LEAF's 80 letters; all other characters share an 81st.
    - `sent140`: the words of a tweet and whether it is positive. Ids: 0 pads, 1 is any other word, then the most
      frequent words of the training rows.
    - `reddit`: sequences of words and the words that follow. Ids: 0 pads, where no target counts; 1 is any other
      word, which is a target like others; then `<BOS>`, `<EOS>`, and the most frequent words of the training rows.

    Source: Caldas et al., arXiv 1812.01097 (LEAF).

    Args:
        source: Names the folder and the task.
        set: Which of these it is; None: recognised by the first sample.
        words: Number of words of `sent140` and `reddit`; None: 10,000.
        length: Words of a tweet that are read, shorter ones are padded at the end; None: 25.

    Raises:
        SettingError: If a file is damaged, or an option or the task does not fit.
    """
    if source.download:
        raise SettingError("data.download=true has no effect with data.name='leaf'; allowed: false")
    if set is not None and set not in SETS:
        near = ", ".join(nearest_first(str(set), SETS))
        raise SettingError(f"data.options.set={shortened(set)} is unknown; known: {near}")
    given = {"words": words, "length": length}
    _check_numbers(given)
    files = _files(source)
    name = _recognised(source, files["train"]) if set is None else set
    kind = SETS[name]
    check_task(source, *kind.tasks)
    for option, value in given.items():
        if value is not None and option not in kind.options:
            raise SettingError(f"data.options.{option}={value!r} has no effect with the set {name!r}; allowed: null")
    train, test = (_rows(source, kind, files[split]) for split in SPLITS)
    for split, rows in zip(SPLITS, (train, test), strict=True):
        if not any(each.count for each in rows):
            raise SettingError(f"data.root={source.root!r} has no {split} rows; allowed: samples in {split}/*.json")
    with refusing(f"data.root={source.root!r}: users differ in the form of their samples"):
        raw = kind.joined(train, test, **{option: given[option] or DEFAULTS[option] for option in kind.options})
    names = np.repeat([each.user for each in train], [each.count for each in train])
    return replace(raw, train_users=np.unique(names, return_inverse=True)[1].astype(np.int64))


def _check_numbers(given: Mapping[str, Any]) -> None:
    for option, value in given.items():
        if value is not None and (type(value) is not int or not 1 <= value <= MOST[option]):
            raise SettingError(
                f"data.options.{option}={shortened(value)} is not allowed; allowed: a whole number from 1 to "
                f"{MOST[option]}"
            )


def _files(source: Source) -> dict[str, list[Path]]:
    allowed = "allowed: a folder that holds train/*.json and test/*.json, as LEAF writes them"
    if source.root is None:
        raise SettingError(f"data.root=null is not allowed with data.name='leaf'; {allowed}")
    found = {}
    for split in SPLITS:
        with refusing(f"data.root={source.root!r} cannot be read"):
            found[split] = sorted(Path(source.root, split).glob("*.json"))
        if not found[split]:
            raise SettingError(f"data.root={source.root!r} has no file {split}/*.json; {allowed}")
    return found


def _recognised(source: Source, files: list[Path]) -> str:
    """Return the name of the set that the first sample belongs to."""
    for path in files:
        for _, samples, targets in _users(source, path):
            if samples and targets:
                found = [name for name, kind in SETS.items() if kind.recognises(samples[0])]
                if len(found) == 1:
                    return found[0]
                raise SettingError(
                    f"data.options.set=null is not allowed: {_shown(source, path)} holds samples as "
                    f"{shortened(samples[0], 60)}; allowed: {', '.join(SETS)}"
                )
    raise SettingError(f"data.root={source.root!r} has no train rows; allowed: samples in train/*.json")


def _rows(source: Source, kind: LeafSet, files: list[Path]) -> list[UserRows]:
    """Return what the files of a split hold of each user, in their order."""
    found = []
    for path in files:
        for user, samples, targets in _users(source, path):
            if samples:
                what = f"{_shown(source, path)}: user {shortened(user)}"
                with refusing(f"{what} has samples that are not of the set"):
                    found.append(UserRows(user, *kind.parsed(what, samples, targets, source.task)))
    return found


def _users(source: Source, path: Path) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Yield the name of each user of a file, with samples and targets."""
    shown = _shown(source, path)
    regular(path, f"data.root={source.root!r}")
    user_files.check_file(shown, str(path))
    with refusing(f"{shown} is no JSON"):
        content = json_in(path.read_bytes())
    users, data = (content.get(key) if isinstance(content, dict) else None for key in ("users", "user_data"))
    if not isinstance(users, list) or not isinstance(data, dict) or not all(isinstance(each, str) for each in users):
        raise SettingError(f"{shown} is no file of LEAF; allowed: users, num_samples and user_data")
    if len(users) != len(data) or any(user not in data for user in users):
        raise SettingError(f"{shown} has other names in users than in user_data; allowed: each user in both, once")
    sizes = content.get("num_samples")
    if sizes is not None and (not isinstance(sizes, list) or len(sizes) != len(users)):
        raise SettingError(f"{shown} has not one number of samples for each of {len(users)} users")
    for index, user in enumerate(users):
        rows = data[user]
        samples, targets = (rows.get(key) if isinstance(rows, dict) else None for key in ("x", "y"))
        if not isinstance(samples, list) or not isinstance(targets, list) or len(samples) != len(targets):
            raise SettingError(f"{shown}: user {shortened(user)} has not one target y for each sample x")
        if sizes is not None and sizes[index] != len(samples):
            raise SettingError(
                f"{shown}: user {shortened(user)} has {len(samples)} samples, and num_samples says "
                f"{shortened(sizes[index])}; allowed: complete files"
            )
        yield user, samples, targets


def _shown(source: Source, path: Path) -> str:
    return f"data.root={source.root!r}: {path.parent.name}/{path.name}"
