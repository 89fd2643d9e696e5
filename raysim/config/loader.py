"""Read an experiment file with dotted overrides, and describe all that is wrong with it in one message."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError, nearest_first

AnySettings = TypeVar("AnySettings", bound=BaseModel)


def load(path: Path, overrides: tuple[str, ...] = ()) -> ExperimentSettings:
    """Read an experiment from a YAML file.

    Args:
        path: The experiment file.
        overrides: Settings that replace those of the file, as `training.learning_rate=0.05`; values are YAML.

    Raises:
        SettingError: If the file cannot be read or a setting is not allowed.
    """
    return with_overrides(read_yaml(path), overrides)


def with_overrides(settings: dict[str, Any], overrides: tuple[str, ...]) -> ExperimentSettings:
    """Replace some settings of an experiment, and return it checked.

    Raises:
        SettingError: If a setting is not allowed.
    """
    for override in overrides:
        apply_override(settings, override)
    return validated(settings, ExperimentSettings)


def validated(settings: dict[str, Any], kind: type[AnySettings]) -> AnySettings:
    """Return checked settings of a class.

    Raises:
        SettingError: If a setting is not allowed.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise SettingError(describe(error, kind)) from None


def read_yaml(path: Path, given_as: str = "CONFIG") -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Args:
        path: The file.
        given_as: Name of the file's argument on the command line.

    Raises:
        SettingError: If the file is missing, is not YAML or holds no mapping.
    """
    name = f"{given_as}={str(path)!r}"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingError(f"{name} is not YAML: {error}") from None
    return mapping_in(text, name)


def mapping_in(text: str, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML text.

    Args:
        text: The text.
        name: The name of the text in messages.

    Raises:
        SettingError: If it is not YAML or holds no mapping.
    """
    try:
        content = parse_value(text)
    except yaml.YAMLError as error:
        raise SettingError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingError(f"{name} holds no settings; allowed: a YAML mapping")
    return content


def population_section(path: Path, given_as: str) -> dict[str, Any]:
    """Return the population section of a YAML file that holds only this section or a whole experiment.

    Raises:
        SettingError: If the file cannot be read or its population holds no settings.
    """
    content = read_yaml(path, given_as)
    section = content.get("population", content)
    if not isinstance(section, dict):
        raise SettingError(f"{given_as}={str(path)!r}: population={section!r} is not allowed; allowed: settings")
    return section


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Set one dotted `name=value` in nested settings; a number in a name is an index of a list."""
    set_value(settings, *parse_override(override))


def parse_override(override: str) -> tuple[str, Any]:
    """Return the name and the YAML value of one `name=value`.

    Raises:
        SettingError: If the text has another form.
    """
    name, equals, value = override.partition("=")
    if not equals or not all(name.strip().split(".")):
        raise SettingError(f"--set {override!r} is not of the form name=value, as in seed=1")
    try:
        return name.strip(), parse_value(value)
    except yaml.YAMLError:
        raise SettingError(f"{name}={value!r} is not a YAML value") from None


def set_value(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set the value of a dotted name in nested settings."""
    *parents, last = name.split(".")
    section: Any = settings
    for parent in parents:
        section = _child(section, parent, name)
    if isinstance(section, list):
        section[_list_index(section, last, name)] = value
    else:
        section[last] = value


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 does; PyYAML follows 1.1, where it is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def parse_value(text: str) -> Any:
    """Read one YAML value.

    >>> parse_value("{rate: 1e-3}")
    {'rate': 0.001}
    """
    return yaml.load(text, Loader=_Loader)


def _child(section: Any, key: str, name: str) -> Any:
    if isinstance(section, list):
        child = section[_list_index(section, key, name)]
    else:
        child = section.get(key)
        if child is None:
            child = section[key] = {}
    if not isinstance(child, (dict, list)):
        raise SettingError(f"--set {name}: {key!r} is a single value, it has no settings of its own")
    return child


def _list_index(section: list[Any], key: str, name: str) -> int:
    if not key.isdecimal() or int(key) >= len(section):
        allowed = f"0 to {len(section) - 1}" if section else "none, it is empty"
        raise SettingError(f"--set {name}: {key!r} is no index of a list of {len(section)}; allowed: {allowed}")
    return int(key)


COMPLETE = ("extra_forbidden", "missing", "value_error", "model_type")
"""Kinds of problems that concern a setting's name, or whose message contains what is allowed."""


def describe(error: ValidationError, kind: type[BaseModel] = ExperimentSettings) -> str:
    """Describe every wrong setting by its name, its value, what is allowed and the nearest valid name."""
    problems = [dict(problem) for problem in error.errors(include_url=False)]
    return "\n".join(_describe_one(problem, kind) for problem in _once_each(problems, kind))


def _once_each(problems: Sequence[dict[str, Any]], kind: type[BaseModel]) -> list[dict[str, Any]]:
    """Join the problems of one value, one for each type that its setting may have."""
    found: dict[Any, dict[str, Any]] = {}
    for index, problem in enumerate(problems):
        is_of_value = problem["type"] not in COMPLETE
        key = tuple(_without_branches([str(part) for part in problem["loc"]], kind)) if is_of_value else index
        before = found.get(key)
        named = problem if before is None or problem["type"] == "literal_error" else before
        allowed = [before["allowed"]] if before is not None else []
        found[key] = named | {"allowed": " or ".join([*allowed, re.sub(r"^\w+ should (be )?", "", problem["msg"])])}
    return list(found.values())


def _describe_one(problem: dict[str, Any], kind: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        location = _without_branches(location, kind)
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = nearest_first(location[-1], fields_at(location[:-1], kind))
        prefix = "".join(f"{part}." for part in location[:-1])
        return (
            f"{name}={problem['input']!r} is not a setting; did you mean {prefix}{known[0]}? "
            f"Known here: {', '.join(known)}"
        )
    if problem["type"] == "missing":
        return f"{name} is missing; it must be given"
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])
        return f"{name}: {text}" if name else text
    if problem["type"] == "model_type":
        known = fields_at(location, kind)
        return f"{name}={problem['input']!r} is not allowed; allowed: settings named {', '.join(known)}"
    nearest = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        names = [part.strip(" '") for part in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        nearest = f"; nearest: {nearest_first(problem['input'], names)[0]!r}"
    allowed = f"{problem['allowed']}{nearest}{_meaning(location, kind)}"
    return f"{name}={problem['input']!r} is not allowed; allowed: {allowed}"


def _without_branches(location: list[str], kind: type[BaseModel]) -> list[str]:
    """Return the location of a setting, without the type that was tried where several are allowed."""
    model = kind
    for depth, part in enumerate(location, 1):
        if part.isdecimal():
            continue
        inner = [found for found in _classes_in(model.model_fields[part].annotation) if issubclass(found, BaseModel)]
        if not inner:
            return location[:depth] + [index for index in location[depth:] if index.isdecimal()]
        model = inner[0]
    return location


def _meaning(location: list[str], kind: type[BaseModel]) -> str:
    """Return the description of a setting, which contains its whole range."""
    *parents, last = [part for part in location if not part.isdecimal()]
    field = _settings_at(parents, kind).model_fields.get(last)
    return f" ({' '.join(field.description.split())})" if field is not None and field.description else ""


def _settings_at(location: list[str], kind: type[BaseModel]) -> type[BaseModel]:
    model = kind
    for part in location:
        if part.isdecimal():
            continue
        annotation = model.model_fields[part].annotation
        model = next(found for found in _classes_in(annotation) if issubclass(found, BaseModel))
    return model


def fields_at(location: list[str], kind: type[BaseModel] = ExperimentSettings) -> list[str]:
    """Return the names of the settings under a dotted location."""
    return list(_settings_at(location, kind).model_fields)


def _classes_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _classes_in(part)]


def to_yaml(settings: BaseModel) -> str:
    """Return the complete settings, with defaults, as YAML."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)


def digest(settings: BaseModel) -> str:
    """Return the SHA-256 of all settings that decide the results, not only where they are computed."""
    deciding = settings.model_dump(mode="json", exclude={"executor", "tracking", "checkpoint"})
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def flatten(settings: BaseModel) -> dict[str, str]:
    """Return the settings as text values by dotted name."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, child in enumerate(value):
                walk(f"{prefix}.{index}", child)
        else:
            flat[prefix] = str(value)

    walk("", settings.model_dump())
    return flat
