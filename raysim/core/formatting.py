"""Write numbers for people."""

import sys
from math import floor, isfinite, log10

from rich.console import Console

AGAINST_FEDAVG = {"bytes": "bytes", "flops": "FLOPs", "simulated": "time", "energy": "energy"}
"""Titles of the costs that are compared with FedAvg's; a summary has each as `<name>_percent_of_fedavg`."""

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def with_unit(value: float, unit: str, digits: int = 3) -> str:
    """Write a number with a unit and its prefix.

    >>> with_unit(18_334_000, "B"), with_unit(412.4, "J"), with_unit(0, "J"), with_unit(float("nan"), "J")
    ('18.3 MB', '412 J', '0 J', '-')
    """
    if not isfinite(value):
        return "-"
    factor, prefix = next(((factor, prefix) for factor, prefix in UNITS if abs(value) >= factor), (1.0, ""))
    return f"{rounded(value / factor, digits)} {prefix}{unit}"


def rounded(value: float, digits: int = 3) -> str:
    """Write a number with as many significant digits, and all digits before the point.

    >>> rounded(0.123456), rounded(12.3456), rounded(123456.7), rounded(0)
    ('0.123', '12.3', '123,457', '0')
    """
    if not isfinite(value):
        return "-"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - floor(log10(abs(value))))
    return f"{value:,.{decimals}f}"


def percent(value: float, digits: int = 1) -> str:
    """Write a percentage.

    >>> percent(48.04), percent(float("nan"))
    ('48.0 %', '-')
    """
    return f"{value:.{digits}f} %" if isfinite(value) else "-"


NOT_A_TERMINAL_WIDTH = 160
"""Columns of output to a file or pipe."""


def output(width: int | None = None) -> Console:
    """Return a console on standard output that prints names with brackets or colons unchanged.

    Args:
        width: Columns. None: those of the terminal, or `NOT_A_TERMINAL_WIDTH`.
    """
    default = None if sys.stdout.isatty() else NOT_A_TERMINAL_WIDTH
    return Console(width=width or default, markup=False, emoji=False, highlight=False)


def duration(seconds: float) -> str:
    """Write a duration in words.

    >>> duration(75.24), duration(3.2), duration(90000)
    ('1 min 15 s', '3.2 s', '25 h 0 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


NOT_COUNTED = "not counted"
"""Written for the energy of devices without power figures, whose joules are 0."""


def joules(energy_j: float) -> str:
    """Write joules with at least three digits.

    >>> joules(1234.5), joules(3.14159), joules(0.0)
    ('1,234 J', '3.14 J', 'not counted')
    """
    if not energy_j:
        return NOT_COUNTED
    return f"{energy_j:,.0f} J" if energy_j >= 100 else f"{energy_j:.3g} J"
