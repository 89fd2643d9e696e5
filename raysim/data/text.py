"""Texts of users as windows of characters or bytes, each with the one that follows as target."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim.core import memory
from raysim.core.errors import SettingError, nearest_first, refusing
from raysim.data.options import check_share
from raysim.data.raw import RawData, Source, check_task, refuse_unread

TASK = "next-token"
UNITS = ("characters", "bytes")
NUM_BYTES = 256


def text(
    source: Source,
    unit: str = "characters",
    length: int = 64,
    users: str = "file",
    test_share: float = 0.1,
    pattern: str = "*.txt",
) -> RawData:
    r"""Return the texts below `data.root`: a file, or a folder.

    Args:
        source: Names the file or folder.
        unit: `characters`, or the `bytes` of UTF-8.
        length: Units of a window.
        users: `file`: each file is a user; otherwise a regular expression that begins a new user at each match; its
            first group, or the whole match, is the user's name (`^([A-Z ]+)\.$` for plays).
        test_share: Share of each user's text, its end, that is tested.
        pattern: Which files of a folder are read.

    Raises:
        SettingError: If there is no text, or an option is not allowed.
    """
    if source.root is None:
        raise SettingError("data.root=null is not allowed with data.name='text'; allowed: a file or a folder of text")
    return of_users(source, _users_in(_files(source.root, pattern), users), unit, length, test_share)


def of_users(
    source: Source, texts: Mapping[str, str], unit: str = "characters", length: int = 64, test_share: float = 0.1
) -> RawData:
    """Return windows of the texts of users, who are numbered in the order of their names.

    The test windows are the end of each user's text. A user with too short a text has no test window, or none at all.

    Raises:
        SettingError: If an option is not allowed, the task is another, or there are too few windows.
    """
    _check(source, unit, length, test_share)
    vocabulary = sorted(set().union(*texts.values())) if unit == "characters" else []
    number = {character: index for index, character in enumerate(vocabulary)}
    parts: dict[str, list[NDArray[np.int64]]] = {"train": [], "test": []}
    owners = []
    for user, name in enumerate(sorted(texts)):
        units = _units(texts[name], number, unit)
        cut = len(units) - round(test_share * len(units))
        train, test = windows(units[:cut], length), windows(units[cut:], length)
        parts["train"].append(train)
        parts["test"].append(test)
        owners.append(np.full(len(train), user))
    train, test = (np.concatenate(parts[split]) for split in ("train", "test"))
    if not len(train) or not len(test):
        raise SettingError(
            f"data.options.length={length} is not allowed: the texts make {len(train)} training and {len(test)} test "
            "windows; allowed: at least one of each"
        )
    size = len(vocabulary) if unit == "characters" else NUM_BYTES
    memory.check_fits("data.options.length", length, 2 * (train.nbytes + test.nbytes))
    return RawData(
        train[:, :-1].copy(),
        train[:, 1:].copy(),
        test[:, :-1].copy(),
        test[:, 1:].copy(),
        None,
        np.concatenate(owners).astype(np.int64),
        num_outputs=size,
        vocabulary=size,
    )


def windows(units: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return windows of `length` + 1 units, `(windows, length + 1)`, each beginning with the last of the one before.

    >>> windows(np.arange(8), 3).tolist()
    [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    count = max(0, (len(units) - 1) // length)
    starts = np.arange(count) * length
    found: NDArray[np.int64] = units[starts[:, None] + np.arange(length + 1)]
    return found


def _units(content: str, number: Mapping[str, int], unit: str) -> NDArray[np.int64]:
    if unit == "bytes":
        return np.frombuffer(content.encode(), np.uint8).astype(np.int64)
    return np.array([number[character] for character in content], np.int64)


def _check(source: Source, unit: str, length: int, test_share: float) -> None:
    refuse_unread(source, root=False)
    check_task(source, TASK)
    if unit not in UNITS:
        raise SettingError(
            f"data.options.unit={unit!r} is not allowed; allowed: {', '.join(nearest_first(str(unit), UNITS))}"
        )
    if type(length) is not int or length < 1:
        raise SettingError(f"data.options.length={length!r} is not allowed; allowed: a whole number from 1")
    check_share(test_share)


def _files(root: str, pattern: str) -> dict[str, str]:
    """Return the texts of the files by their names below the folder."""
    if not isinstance(pattern, str) or pattern.startswith("/") or not pattern:
        raise SettingError(f"data.options.pattern={pattern!r} is not allowed; allowed: a pattern below data.root")
    folder = Path(root)
    if not folder.exists():
        raise SettingError(f"data.root={root!r} does not exist; allowed: a file or a folder of text")
    paths = [folder] if folder.is_file() else sorted(path for path in folder.rglob(pattern) if path.is_file())
    if not paths:
        raise SettingError(f"data.root={root!r} has no file that fits data.options.pattern={pattern!r}")
    found = {}
    for path in paths:
        with refusing(f"data.root={root!r}: {path.name!r} is no text in UTF-8"):
            found[path.relative_to(folder).as_posix() if path != folder else path.name] = path.read_text("utf-8")
    return found


def _users_in(files: Mapping[str, str], users: str) -> dict[str, str]:
    """Return the text of each user."""
    if users == "file":
        return dict(files)
    with refusing(f"data.options.users={users!r} is neither 'file' nor a regular expression"):
        begins = re.compile(users, re.MULTILINE)
    found: dict[str, list[str]] = {}
    for content in files.values():
        matches = list(begins.finditer(content))
        ends = [*(match.start() for match in matches[1:]), len(content)]
        for match, end in zip(matches, ends[: len(matches)], strict=True):
            found.setdefault((match[1] if begins.groups else match[0]) or "", []).append(content[match.end() : end])
    if not found:
        raise SettingError(
            f"data.options.users={users!r} matches nowhere in the texts; allowed: 'file', or a pattern"
        )
    return {name: "".join(pieces) for name, pieces in found.items()}
