"""Describe all that is wrong with settings in one message."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import MAX_MESSAGE, nearest_first, shortened, without_middle

COMPLETE = ("extra_forbidden", "missing", "value_error", "model_type")
"""Kinds of problems that concern a setting's name, or whose message contains what is allowed."""
BESIDE_ALLOWED = re.compile(r"^\w+ should (be |have )?| after validation, not \d+$")
"""Parts of a validator's message beside what is allowed."""


MAX_DESCRIBED = 20
"""Largest number of problems with a line each; the others are counted."""


def describe(error: ValidationError, kind: type[BaseModel] = ExperimentSettings) -> str:
    """Describe wrong settings by name, value, what is allowed and the nearest valid name, each in a line.

    As many are described as fit into a message; the number of the others is its last line.
    """
    problems = _once_each([dict(problem) for problem in error.errors(include_url=False)], kind)
    lines: list[str] = []
    room = MAX_MESSAGE - len("and 50,000 more problems")
    for problem in problems[:MAX_DESCRIBED]:
        line = _describe_one(problem, kind)
        room -= len(line) + 1
        if lines and room < 0:
            break
        lines.append(without_middle(line, MAX_MESSAGE - 30))
    others = len(problems) - len(lines)
    return "\n".join([*lines, *([f"and {others:,} more problem{'s'[: others - 1]}"] if others else [])])


def _once_each(problems: Sequence[dict[str, Any]], kind: type[BaseModel]) -> list[dict[str, Any]]:
    """Join the problems of one value, one for each type that its setting may have."""
    found: dict[Any, dict[str, Any]] = {}
    for index, problem in enumerate(problems):
        is_of_value = problem["type"] not in COMPLETE
        key = tuple(_without_branches([str(part) for part in problem["loc"]], kind)) if is_of_value else index
        before = found.get(key)
        named = problem if before is None or problem["type"] == "literal_error" else before
        allowed = [before["allowed"]] if before is not None else []
        found[key] = named | {"allowed": " or ".join([*allowed, re.sub(BESIDE_ALLOWED, "", problem["msg"])])}
    return list(found.values())


def _describe_one(problem: dict[str, Any], kind: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        location = _without_branches(location, kind)
    name = without_middle(".".join(location), 120)
    if problem["type"] == "extra_forbidden":
        known = nearest_first(location[-1], fields_at(location[:-1], kind))
        prefix = "".join(f"{part}." for part in location[:-1])
        return (
            f"{name}={shortened(problem['input'])} is not a setting; did you mean {prefix}{known[0]}? "
            f"Known here: {', '.join(known)}"
        )
    if problem["type"] == "missing":
        return f"{name} is missing; it must be given"
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])
        return f"{name}: {text}" if name else text
    if problem["type"] == "model_type":
        known = fields_at(location, kind)
        return f"{name}={shortened(problem['input'])} is not allowed; allowed: settings named {', '.join(known)}"
    nearest = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        names = [part.strip(" '") for part in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        nearest = f"; nearest: {nearest_first(problem['input'], names)[0]!r}"
    allowed = f"{problem['allowed']}{nearest}{_meaning(location, kind)}"
    return f"{name}={shortened(problem['input'])} is not allowed; allowed: {allowed}"


def _without_branches(location: list[str], kind: type[BaseModel]) -> list[str]:
    """Return the location of a setting, without the type that was tried where several are allowed."""
    for depth, settings in _sections_along(location, kind):
        if settings is None:
            return location[:depth] + [index for index in location[depth:] if index.isdecimal()]
    return location


def _sections_along(location: list[str], kind: type[BaseModel]) -> Iterator[tuple[int, type[BaseModel] | None]]:
    """Yield how many parts of a location lead to each field in it, and the settings that it holds.

    Indices and names that users give to settings are no fields. None: the field holds no settings, or there is none
    of this name; it is the last one.
    """
    model: type[BaseModel] | None = kind
    is_key = False
    for depth, part in enumerate(location, 1):
        if model is None:
            return
        if part.isdecimal() or is_key:
            is_key = False
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        model = next((found for found in _classes_in(annotation) if issubclass(found, BaseModel)), None)
        is_key = get_origin(annotation) is dict
        yield depth, model


def _meaning(location: list[str], kind: type[BaseModel]) -> str:
    """Return the description of a setting, which contains its whole range."""
    *parents, last = [part for part in location if not part.isdecimal()]
    field = _settings_at(parents, kind).model_fields.get(last)
    return f" ({' '.join(field.description.split())})" if field is not None and field.description else ""


def _settings_at(location: list[str], kind: type[BaseModel]) -> type[BaseModel]:
    """Return the settings at a location.

    Raises:
        KeyError: If there are none.
    """
    found = [kind, *(section for _, section in _sections_along(location, kind))][-1]
    if found is None:
        raise KeyError(".".join(location))
    return found


def fields_at(location: list[str], kind: type[BaseModel] = ExperimentSettings) -> list[str]:
    """Return the names of the settings under a dotted location."""
    return list(_settings_at(location, kind).model_fields)


def _classes_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _classes_in(part)]
