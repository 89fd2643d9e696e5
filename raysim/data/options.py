"""Check options that several data sets take: names of columns, and the share of rows that is tested."""

from collections.abc import Collection, Iterable
from typing import Any

from raysim.core.errors import SettingError, nearest_first, shortened

DEFAULT_TEST_SHARE = 0.2
SHOWN = 5
"""Names that a message lists, at most."""


def columns(option: str, given: Any) -> tuple[str, ...]:
    """Return the columns that an option names: none, one, or a list of them.

    Raises:
        SettingError: If it is neither a name nor a list of different names.

    >>> columns("target", "price"), columns("drop", None), columns("inputs", ["a", "b"])
    (('price',), (), ('a', 'b'))
    """
    names = () if given is None else (given,) if isinstance(given, str) else given
    is_list = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) < len(names):
        raise SettingError(
            f"data.options.{option}={shortened(given)} is not allowed; allowed: the name of a column, or a list of "
            "different names"
        )
    return tuple(names)


def one_column(option: str, given: Any) -> str | None:
    """Return the column that an option names, if any.

    Raises:
        SettingError: If it is no name.
    """
    if given is not None and not isinstance(given, str):
        raise SettingError(f"data.options.{option}={shortened(given)} is not allowed; allowed: the name of a column")
    return given


def required(option: str, names: Collection[str], known: Iterable[str]) -> None:
    """Raise SettingError if an option names no column, or one that is not there."""
    if not names:
        raise SettingError(
            f"data.options.{option} names no column; allowed: {_listed(sorted(known))}, or a list of these"
        )
    refuse_unknown(option, names, known)


def refuse_unknown(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise SettingError if an option names a column that is not there."""
    there = set(known)
    for name in names:
        if name not in there:
            raise SettingError(
                f"data.options.{option}={name!r} is no column of the data; nearest: "
                f"{_listed(nearest_first(name, there))}"
            )


def refuse_shared(named: dict[str, tuple[str, ...]]) -> None:
    """Raise SettingError if two options name the same column."""
    of: dict[str, str] = {}
    for option, names in named.items():
        for name in names:
            if name in of:
                raise SettingError(
                    f"data.options.{option}={name!r} is not allowed: data.options.{of[name]} names that column, too; "
                    "allowed: a column of its own"
                )
            of[name] = option


def check_share(test_share: Any) -> None:
    """Raise SettingError if the share of rows that is tested is not in (0, 1)."""
    is_number = isinstance(test_share, (int, float)) and not isinstance(test_share, bool)
    if not is_number or not 0 < test_share < 1:
        raise SettingError(f"data.options.test_share={shortened(test_share)} is not in (0, 1)")


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
