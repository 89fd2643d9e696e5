"""Declare and check the options of one row of a table, such as a method."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from raysim.core.errors import SettingError, nearest_first, shortened

LARGEST, MOST = 1e30, 2**63 - 1
"""Largest number, which 32 bits hold, too, and largest whole number."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of one row: its default, its meaning and what is allowed.

    Attributes:
        default: Value without a setting; its type is the type of the option.
        about: Its meaning in one sentence.
        low: Smallest allowed number.
        high: Largest allowed number.
        choices: Allowed texts.
    """

    default: Any
    about: str
    low: float = 0.0
    high: float = inf
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any, section: str = "method") -> Any:
        """Return a value from the settings in the type of the option.

        Args:
            name: The name of the option.
            value: The value in the settings.
            section: The section of the settings that contains it.

        Raises:
            SettingError: If the value has another type or is not allowed.
        """
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        fits = type(value) is kind and (kind in (bool, str) or self._holds(value))
        if not fits or (self.choices and value not in self.choices):
            raise SettingError(
                f"{section}.options.{name}={shortened(value)} is not allowed; allowed: {self.allowed} ({self.about})"
            )
        return value

    def _holds(self, value: float) -> bool:
        largest = MOST if isinstance(value, int) else LARGEST
        return self.low <= value <= self.high and -largest <= value <= largest

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{kind} from {self.low:g}" + (f" to {self.high:g}" if self.high < inf else "")


def own_options(
    row: str, declared: Mapping[str, Option], given: Mapping[str, Any], setting: str = "method.name"
) -> dict[str, Any]:
    """Return all options of a row: checked values from the settings, and defaults for the others.

    Args:
        row: Name of the row.
        declared: The options of the row by name.
        given: The values in the settings by name.
        setting: The setting that names the row.

    Raises:
        SettingError: If the row has no such option, or its value is not allowed.
    """
    section = setting.partition(".")[0]
    for name, value in given.items():
        if name not in declared:
            known = ", ".join(nearest_first(name, declared)) or "none"
            raise SettingError(
                f"{section}.options.{name}={shortened(value)} is unknown with {setting}={row!r}; options of its own: "
                f"{known}"
            )
    return {name: option.check(name, given.get(name, option.default), section) for name, option in declared.items()}
