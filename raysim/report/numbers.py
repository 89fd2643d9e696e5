"""Numbers as people read them."""

from math import floor, isfinite, log10

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def with_unit(value: float, unit: str, digits: int = 3) -> str:
    """Write a number with a prefix to its unit.

    >>> with_unit(18_334_000, "B"), with_unit(412.4, "J"), with_unit(0, "J"), with_unit(float("nan"), "J")
    ('18.3 MB', '412 J', '0 J', '-')
    """
    if not isfinite(value):
        return "-"
    factor, prefix = next(((factor, prefix) for factor, prefix in UNITS if abs(value) >= factor), (1.0, ""))
    return f"{rounded(value / factor, digits)} {prefix}{unit}"


def rounded(value: float, digits: int = 3) -> str:
    """Write a number with so many digits that count, no whole one left out.

    >>> rounded(0.123456), rounded(12.3456), rounded(123456.7), rounded(0)
    ('0.123', '12.3', '123,457', '0')
    """
    if not isfinite(value):
        return "-"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - floor(log10(abs(value))))
    return f"{value:,.{places}f}"


def percent(value: float, digits: int = 1) -> str:
    """Write per cent.

    >>> percent(48.04), percent(float("nan"))
    ('48.0 %', '-')
    """
    return f"{value:.{digits}f} %" if isfinite(value) else "-"
