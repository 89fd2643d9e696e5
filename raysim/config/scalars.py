"""Read the plain scalars of YAML 1.2, and refuse those that YAML 1.1 reads as something else.

Numbers with an exponent but without a point or sign, as 1e-3, are text in YAML 1.1; here they are numbers.
"""

import math
import re

from raysim.core.errors import SettingError, without_middle

CONSTANTS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
TWO_READINGS = {
    r"[-+]?0[0-7]+": ("an octal number", "a decimal one"),
    r"[-+]?0[0-9]+": ("text", "a decimal number"),
    r"0o[0-7]+": ("text", "an octal number"),
    r"[-+]?0b[01_]+": ("a binary number", "text"),
    r"[-+]?0x[0-9a-fA-F_]+": ("a hexadecimal number", "text"),
    r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?": ("a number in base 60", "text"),
    r"(?=[^_]*_)[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9_]+)([eE][-+]?[0-9]+)?": ("a number", "text"),
    r"yes|Yes|YES|on|On|ON": ("true", "text"),
    r"no|No|NO|off|Off|OFF": ("false", "text"),
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(([Tt]|[ \t]+)[0-9].*)?": ("a date", "text"),
}
"""Plain scalars that the two versions of YAML read differently: as what 1.1, and as what 1.2."""
QUOTED = "quotes around it where it is text"
ALLOWED = {**dict.fromkeys(("true", "false"), f"true or false, or {QUOTED}"), "a date": QUOTED}
NUMBER = f"a decimal number as 10 or 1e-3, or {QUOTED}"
LEAST, MOST = -(2**63), 2**63 - 1
MAX_DIGITS = 400
"""Longest number in characters; 64 bits hold no more than 20 digits of a whole number and 17 of another."""

Scalar = str | int | float | bool | None


def plain(text: str) -> Scalar:
    """Return the value of a plain scalar, which stands without quotes.

    Raises:
        SettingError: If YAML 1.1 and 1.2 read it differently, or it is a number that 64 bits cannot hold.

    >>> plain("10"), plain("1e-3"), plain("0xff"), plain("~"), plain("ca-hfp")
    (10, 0.001, 255, None, 'ca-hfp')
    """
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text) or HEXADECIMAL.fullmatch(text):
        return _integer(text)
    _check_readings(text)
    return _float(text) if FLOAT.fullmatch(text) else text


def is_plain_text(text: str) -> bool:
    """Whether a text may stand without quotes and is read as the same text."""
    try:
        return plain(text) == text
    except SettingError:
        return False


def _check_readings(text: str) -> None:
    for pattern, (old, new) in TWO_READINGS.items():
        if re.fullmatch(pattern, text):
            readings = f"is {old} in YAML 1.1 and {new} in YAML 1.2"
            raise SettingError(f"{without_middle(text, 60)} {readings}; allowed: {ALLOWED.get(old, NUMBER)}")


def _integer(text: str) -> int:
    value = int(text, 0) if len(text) <= MAX_DIGITS else MOST + 1  # Python refuses very long ones with an error
    if not LEAST <= value <= MOST:
        raise SettingError(
            f"{without_middle(text, 60)} does not fit into 64 bits; allowed: whole numbers from -2^63 to "
            "2^63 - 1, or an exponent, as in 1e20"
        )
    return value


def _float(text: str) -> float:
    value = float(text) if len(text) <= MAX_DIGITS else math.inf
    mantissa = re.split("[eE]", text)[0]
    if math.isinf(value) or (value == 0 and re.search("[1-9]", mantissa)):
        raise SettingError(
            f"{without_middle(text, 60)} does not fit into 64 bits; allowed: 0, .inf, 5e-324 to 1.8e308"
        )
    return value
