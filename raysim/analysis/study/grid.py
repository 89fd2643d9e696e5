"""The trials that tune the rows of a comparison: each row with each combination of the grid's values."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from raysim.analysis.study.settings import ComparisonSettings, MethodEntry, TuneSettings
from raysim.config import loader
from raysim.core.errors import SettingError, shortened

MAX_RUNS = 10_000
"""Most runs of a comparison, and most trials."""


def check(settings: ComparisonSettings) -> None:
    """Refuse more runs or trials than anybody waits for, before they are planned, and settings that are given twice.

    Raises:
        SettingError: If there are too many, or a section in the grid would replace settings that stand beside it.
    """
    tune = settings.tune
    made = {"methods and seeds": len(settings.seeds)}
    if tune:
        made["methods, tune.grid and tune.seeds"] = len(tune.seeds) * math.prod(map(len, tune.grid.values()))
    for parts, each in made.items():
        if len(settings.methods) * each > MAX_RUNS:
            number = shortened(len(settings.methods) * each)
            raise SettingError(f"{parts} make {number} runs; allowed: at most {MAX_RUNS:,}")
    for name in tune.grid if tune else ():
        inner = next(
            (f"{where} has {other!r}" for where, other in _given(settings) if other.startswith(f"{name}.")), ""
        )
        if inner:
            raise SettingError(f"tune: grid: {name!r} is not allowed, since {inner}; allowed: one of them")


def _given(settings: ComparisonSettings) -> Iterator[tuple[str, str]]:
    """Yield the name of each setting that a comparison gives, after the part of the file that gives it."""
    yield from (("grid", name) for name in (settings.tune.grid if settings.tune else ()))
    yield from (("set", name) for name in names_in(settings.set))
    for entry in settings.methods:
        yield from ((f"methods: {entry.title!r}", name) for name in names_in(entry.set))


def trials_of(settings: ComparisonSettings) -> list[tuple[MethodEntry, dict[str, Any]]]:
    """Return each row and the values of each of its trials; a row's own values are not in the grid."""
    found = []
    for entry in settings.methods:
        own = settings.tune and settings.tune.without(names_in(entry.set))
        found += [(entry, values) for values in own.combinations] if own else []
    return found


def of_trials(settings: ComparisonSettings, tune: TuneSettings) -> ComparisonSettings:
    """Return the trials of a comparison, as a comparison of as many rows."""
    changes = {
        "methods": [_with(entry, values) for entry, values in trials_of(settings)],
        "seeds": tune.seeds,
        "set": settings.set | {"rounds": tune.rounds},
        "tune": None,
    }
    return settings.model_copy(update=changes)


def _with(entry: MethodEntry, values: dict[str, Any]) -> MethodEntry:
    named = ", ".join(f"{name.rpartition('.')[2]} {json.dumps(value)}" for name, value in values.items())
    return entry.model_copy(update={"label": f"{entry.title}, {named}", "set": entry.set | values})


def names_in(given: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of all settings that some settings give."""
    return [name for key, value in given.items() for name in loader.names_set_by(key, value)]
