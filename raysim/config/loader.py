"""Read an experiment file with dotted overrides, and check it."""

import hashlib
import json
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raysim.config import yaml_text
from raysim.config.experiment import ExperimentSettings
from raysim.config.problems import describe
from raysim.core.errors import SettingError, reason_of, refusing, shortened, without_middle
from raysim.core.storage import uris
from raysim.core.storage.expansion import expanded_text

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
    experiment = validated(settings, ExperimentSettings)
    for name, value in flatten(experiment).items():
        if "://" in value and name != "tracking.uri":  # which the store itself checks
            uris.check(name, value, "a value without; credentials belong into the environment")
    return experiment


def validated(settings: dict[str, Any], kind: type[AnySettings]) -> AnySettings:
    """Return checked settings of a class.

    Raises:
        SettingError: If a setting is not allowed.
    """
    with refusing("the settings are not allowed"):
        try:
            return kind.model_validate(settings)
        except ValidationError as error:
            raise SettingError(describe(error, kind)) from None


def read_yaml(path: Path, given_as: str = "CONFIG", limits: yaml_text.Limits = yaml_text.USER) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Args:
        path: The file.
        given_as: Name of the file's argument on the command line.
        limits: The largest text.

    Raises:
        SettingError: If the file is missing, is not YAML or holds no mapping.
    """
    name = f"{given_as}={shortened(str(path))}"
    return mapping_in(_text_in(path, name, 4 * limits.chars), name, limits)


def _text_in(path: Path, name: str, most: int) -> str:
    """Return the text of a file, of which no more bytes are read than settings may have."""
    try:
        is_pipe = stat.S_ISFIFO(path.stat().st_mode) and not str(path).startswith("/dev/")
        content = b"" if is_pipe else _first_bytes(path, most + 4)
    except OSError as error:
        raise SettingError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingError(f"{name} is no path: {error}") from None
    if is_pipe:
        raise SettingError(f"{name} is a named pipe; allowed: a file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingError(f"{name} is not YAML: it is no text in UTF-8 ({reason_of(error)})") from None


def _first_bytes(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def read_with_base(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file of a comparison or a sweep; a `base` that is a path is read, too.

    Args:
        path: The file; the path of its base is relative to it.

    Raises:
        SettingError: If one of the files is missing, is not YAML or holds no mapping.
    """
    content = dict(read_yaml(path))
    if isinstance(content.get("base"), str):
        content["base"] = read_yaml(path.parent / expanded_text("base", content["base"]))
    return content


def mapping_in(text: str, name: str, limits: yaml_text.Limits = yaml_text.USER) -> dict[str, Any]:
    """Return the mapping in a YAML text.

    Args:
        text: The text.
        name: The name of the text in messages.
        limits: The largest text.

    Raises:
        SettingError: If it is not YAML or holds no mapping.
    """
    content = yaml_text.read(text, name, limits)
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
        raise SettingError(
            f"{given_as}={shortened(str(path))}: population={shortened(section)} is not allowed; allowed: settings"
        )
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
        raise SettingError(f"--set {shortened(override)} is not of the form name=value, as in seed=1")
    return name.strip(), parse_value(value, f"--set {without_middle(name, 120)}={shortened(value)}")


def set_value(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set the value of a dotted name in nested settings."""
    *parents, last = name.split(".")
    if len(parents) > yaml_text.MAX_DEPTH:
        raise SettingError(
            f"{without_middle(name, 120)} has {len(parents) + 1:,} parts; allowed: at most {yaml_text.MAX_DEPTH + 1}"
        )
    section: Any = settings
    for parent in parents:
        section = _child(section, parent, name)
    if isinstance(section, list):
        section[_list_index(section, last, name)] = value
    else:
        section[last] = value


def names_set_by(name: str, value: Any) -> list[str]:
    """Return the dotted names that a value sets: its own and, where it is a section, those of all settings in it.

    >>> names_set_by("method", {"name": "fedavg", "options": {}})
    ['method', 'method.name', 'method.options']
    """
    inner = value.items() if isinstance(value, dict) else ()
    return [name, *(found for key, child in inner for found in names_set_by(f"{name}.{key}", child))]


def parse_value(text: str, name: str = "") -> Any:
    """Read one YAML value.

    Args:
        text: The text.
        name: The name of the text in messages.

    Raises:
        SettingError: If it is not YAML, or more or something else than settings may hold; see `yaml_text.read`.

    >>> parse_value("{rate: 1e-3}")
    {'rate': 0.001}
    """
    return yaml_text.read(text, name)


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
    if not key.isdecimal() or len(key) > len(str(len(section))) or int(key) >= len(section):
        allowed = f"0 to {len(section) - 1}" if section else "none, it is empty"
        raise SettingError(f"--set {name}: {key!r} is no index of a list of {len(section)}; allowed: {allowed}")
    return int(key)


def to_yaml(settings: BaseModel) -> str:
    """Return the complete settings, with defaults, as YAML."""
    return yaml_text.write(settings.model_dump())


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
