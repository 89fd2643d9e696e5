"""Replace `~` and environment variables in paths, and refuse texts that no path can be."""

import os
import re

from raysim.core.errors import SettingError, shortened

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
MAX_NAME, MAX_PATH = 255, 4095
"""Largest number of bytes in the name of a file, and in a path, on Linux."""
FILE_SCHEME = re.compile(r"sqlite(\+\w+)?:///|file://")


def expanded(path: str) -> str:
    """Return a path with what `~` and environment variables stand for.

    A path with `$` that exists as it is stays as it is.

    Raises:
        ValueError: If a variable or a user is unknown, or the text cannot be a path.
    """
    _check(path)
    if not ("$" in path and os.path.exists(path)):
        path = VARIABLE.sub(_value_of, path)
    if path.startswith("~"):
        found = os.path.expanduser(path)
        if found.startswith("~"):
            user = path.partition("/")[0]
            raise ValueError(f"{shortened(path)}: {user} is the home of no user; allowed: ~, or ./{user} for a name")
        path = found
    _check(path)
    return path


def expanded_uri(uri: str) -> str:
    """Return a path or URI with what `~` and environment variables stand for, of `sqlite:///~/FILE`, too.

    Raises:
        ValueError: If a variable or a user is unknown, or the text cannot be a path.
    """
    scheme = FILE_SCHEME.match(uri)
    start = scheme.end() if scheme is not None else 0
    return uri[:start] + expanded(uri[start:])


def _value_of(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    if name not in os.environ:
        raise ValueError(f"the environment variable {name} is not set; allowed: one that is, as $HOME")
    return os.environ[name]


def _check(path: str) -> None:
    if "\0" in path:
        raise ValueError(f"{shortened(path)} holds NUL; allowed: a path")
    try:
        parts = [len(os.fsencode(part)) for part in path.split("/")]
    except UnicodeEncodeError:
        raise ValueError(f"{shortened(path)} is no text in UTF-8; allowed: a path") from None
    if max(parts) > MAX_NAME or sum(parts) + len(parts) - 1 > MAX_PATH:
        raise ValueError(
            f"{shortened(path)} is too long; allowed: names of {MAX_NAME} bytes in a path of {MAX_PATH}, at most"
        )


def expanded_text(setting: str, given: str) -> str:
    """Return a path or URI that a setting or an argument holds, with what it stands for.

    Raises:
        SettingError: If a variable or a user is unknown, or the text cannot be a path.
    """
    try:
        return expanded_uri(given)
    except ValueError as error:
        raise SettingError(f"{setting}: {error}") from None
