"""Options of a method's own, and how they are checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from raysim.core.errors import SettingError, nearest_first


@dataclass(frozen=True, slots=True)
class Option:
    """An option of one row: its default, what it means and what is allowed.

    Attributes:
        default: Value where the settings give none; its type is the option's type.
        about: One sentence.
        low: Least allowed number.
        high: Greatest allowed number.
        choices: Allowed texts.
    """

    default: Any
    about: str
    low: float = 0.0
    high: float = inf
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any, section: str = "method") -> Any:
        """Return a value of the option's type.

        Args:
            name: The option.
            value: What the settings give.
            section: The section of the settings that it stands in.

        Raises:
            SettingError: If it is of another type or out of range.
        """
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        fits = type(value) is kind and (kind in (bool, str) or self.low <= value <= self.high)
        if not fits or (self.choices and value not in self.choices):
            raise SettingError(
                f"{section}.options.{name}={value!r} is not allowed; allowed: {self.allowed} ({self.about})"
            )
        return value

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.choices:
            return ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{kind} from {self.low:g}" + ("" if self.high == inf else f" to {self.high:g}")


def own_options(
    row: str, declared: Mapping[str, Option], given: Mapping[str, Any], setting: str = "method.name"
) -> dict[str, Any]:
    """Return a row's own options, those given checked and the others at their defaults.

    Args:
        row: Name of the row.
        declared: Its options.
        given: Those in the settings, by name.
        setting: The setting that names the row.

    Raises:
        SettingError: If the row has no such option, or its value is not allowed.
    """
    section = setting.partition(".")[0]
    for name, value in given.items():
        if name not in declared:
            known = ", ".join(nearest_first(name, declared)) or "none"
            raise SettingError(
                f"{section}.options.{name}={value!r} is unknown with {setting}={row!r}; options of its own: {known}"
            )
    return {name: option.check(name, given.get(name, option.default), section) for name, option in declared.items()}
