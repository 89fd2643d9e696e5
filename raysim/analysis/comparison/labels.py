"""Name the rows of a comparison by the settings that distinguish them."""

from collections.abc import Collection, Mapping, Sequence

SHOWN_SETTINGS = 4
"""The most settings that are shown of a row besides those in its label."""


def differing(own: Mapping[str, str], all_settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the settings of a row that not all rows have, by name; without the method, and without null."""
    return {
        name: value
        for name, value in own.items()
        if name != "method.name" and value != "None" and any(other.get(name) != value for other in all_settings)
    }


def distinguishing(own: Mapping[str, str], among: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return settings that distinguish a row from others: all that differ, or as few of many as suffice."""
    found = differing(own, among)
    if len(found) <= SHOWN_SETTINGS:
        return found
    left, names = [other for other in among if other != own], sorted(set().union(*among))
    chosen: dict[str, str] = {}
    while left:
        name = max(names, key=lambda each: (_num_apart(each, own, left), own.get(each, "None") != "None"))
        chosen[name] = own.get(name, "None")
        left = [other for other in left if other.get(name) == own.get(name)]
    return chosen


def _num_apart(name: str, own: Mapping[str, str], others: Sequence[Mapping[str, str]]) -> int:
    return sum(other.get(name) != own.get(name) for other in others)


def described(settings: Mapping[str, str], all_names: Collection[str]) -> list[str]:
    """Return settings as `learning_rate 0.1`, by their dotted name only if its last part is ambiguous.

    >>> described({"training.epochs": "2", "server.momentum": "0"}, ["training.momentum", "server.momentum"])
    ['epochs 2', 'server.momentum 0']
    """
    last = [name.rpartition(".")[2] for name in all_names]
    return [
        f"{name if last.count(name.rpartition('.')[2]) > 1 else name.rpartition('.')[2]} {value}"
        for name, value in settings.items()
    ]


def shortly(settings: Mapping[str, str], at_most: int = SHOWN_SETTINGS) -> str:
    """Return settings in one line, the first of them by name.

    >>> shortly({"training.epochs": "2", "rounds": "9"}, at_most=1)
    'epochs 2 and 1 more'
    """
    shown = described(settings, settings)
    more = len(shown) - at_most
    return ", ".join(shown[:at_most]) + (f" and {more} more" if more > 0 else "")
