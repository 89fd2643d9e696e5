"""The columns of a table with their cells as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysim.analysis.tables.means import LAST
from raysim.config.metric import ACCURACY, PrimaryMetric, metric_in

LAST_MEAN, FINAL, BEST = "primary_last10", "primary", "best_primary"
"""The scores of a row, named after the metric: the mean of the last evaluations, the last one, and the best."""
DIFFERENCES = ("points", "difference")
"""The headings of differences: of shares, and of other numbers."""
LOWER = {LAST_MEAN: f"last {LAST}", FINAL: "final", BEST: "best"}
"""The second lines of their headings."""
STAR = "*"
"""Marks a comparison with the baseline that only some of the row's seeds allow."""
UNITS = {"megabytes": "MB", "simulated_s": "s", "energy_j": "J"}
"""The units of the costs besides rounds."""
SEEDS = (
    "\u00b1 is the sample standard deviation over seeds (initial weights, cohorts, batches, the clock's variation) "
    "of one split of the data, not over splits"
)
"""The meaning of deviations, for notes."""


def scores_of(metric: PrimaryMetric) -> dict[str, str]:
    """Return the names of a row's scores, with the second lines of their headings.

    >>> scores_of(PrimaryMetric("rmse"))
    {'rmse_last10': 'last 10', 'rmse': 'final', 'best_rmse': 'best'}
    """
    return {metric.recorded(name): lower for name, lower in LOWER.items()}


def score_columns(table: Sequence[Mapping[str, Any]], part: str = "") -> list["Column"]:
    """Return the columns with the scores of each row, and with their difference to the baseline's."""
    metric = metric_in(table[0])
    upper = f"{metric.title} %" if metric.is_share else metric.title
    differences = [points(row, "" if row["points_are_all"] else STAR) for row in table]
    return [
        *(
            Column(upper, lower, [score(row[name], metric) for row in table], part=part)
            for name, lower in scores_of(metric).items()
        ),
        Column(DIFFERENCES[0 if metric.is_share else 1], "to baseline", differences, part=part),
    ]


def leading(has_last_mean: Sequence[bool], metric: PrimaryMetric = ACCURACY) -> str:
    """Return the score by which rows are compared: the last mean, if all scored runs have enough evaluations.

    >>> leading([True, True]), leading([True, False]), leading([])
    ('accuracy_last10', 'accuracy', 'accuracy')
    """
    return metric.recorded(LAST_MEAN if has_last_mean and all(has_last_mean) else FINAL)


def points(row: Mapping[str, Any], star: str = "") -> str:
    """Write a difference of scores in points, with its t-interval; of other metrics than shares as it is.

    >>> points({"points": 2.1, "points_low": -0.3, "points_high": 4.5}), points({"points": None})
    ('+2.1 [-0.3, +4.5]', '-')
    """
    if row["points"] is None:
        return "-"
    form = "+.1f" if metric_in(row).is_share else "+.3g"
    bounds = (row["points_low"], row["points_high"])
    interval = "" if bounds[0] is None else f" [{', '.join(format(bound, form) for bound in bounds)}]"
    return f"{row['points']:{form}}{star}{interval}"


def reached_columns(
    costs: Sequence[Mapping[str, Any]], names: Mapping[str, str], part: str = "", metric: PrimaryMetric = ACCURACY
) -> list["Column"]:
    """Return the columns with what a target cost each row: rounds, with the runs that reached it, and the rest.

    Args:
        costs: The costs of the target, one entry per row.
        names: The units of the costs besides rounds, by name.
        part: The part of the table that they belong to. Empty: a part of their own.
        metric: The metric of the target.
    """
    upper = f"to {metric.target_text(costs[0][metric.name])}"
    others = [
        Column(upper, unit, [cost(each[name], is_whole=True) for each in costs], part=part or upper)
        for name, unit in names.items()
    ]
    return [Column(upper, "rounds", [_rounds(each) for each in costs], part=part or upper), *others]


def cost(value: Mapping[str, Any], is_whole: bool) -> str:
    """Write a cost with its share of the baseline's, which means nothing for runs that did not finish."""
    if value["mean"] is None:
        return "-"
    has_share = value["percent"] is not None and is_whole
    share = f" ({value['percent']:.0f} %{'' if value['is_all'] else STAR})" if has_share else ""
    return f"{number(value['mean'])}{share}"


def _rounds(target: Mapping[str, Any]) -> str:
    if not target["reached"]:
        return f"not reached (0 of {target['of']})"
    mean, deviation = target["rounds"]["mean"], target["rounds"]["std"]
    rounds = f"{mean:.3g}" + (f" \u00b1 {deviation:.1f}" if deviation else "")
    return f"{rounds} ({target['reached']} of {target['of']})"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        upper: The first line of its heading; neighbours with the same first line share it.
        lower: The second line of its heading.
        cells: Its cells, one per row.
        is_text: Whether the cells are text, and no numbers.
        wraps: Whether text may take several lines on a narrow terminal.
        part: The part of the table that it belongs to where one table is too wide; see `parts_of`.
    """

    upper: str
    lower: str
    cells: list[str]
    is_text: bool = False
    wraps: bool = True
    part: str = ""

    @property
    def heading(self) -> str:
        """Both lines of the heading in one."""
        return f"{self.upper} {self.lower}".strip()


def parts_of(columns: Sequence[Column]) -> list[list[Column]]:
    """Return the parts of a table, each of which starts with the first column, the names of the rows."""
    names, *others = columns
    parts: dict[str, list[Column]] = {}
    for column in others:
        parts.setdefault(column.part, [names]).append(column)
    return list(parts.values())


def score(value: Mapping[str, float | None], metric: PrimaryMetric = ACCURACY) -> str:
    """Write mean and deviation of a score: of a share in per cent, of another number with four and two digits.

    >>> score({"mean": 0.8123, "std": 0.0123}), score({"mean": 0.5, "std": None})
    ('81.2 \u00b1 1.2', '50.0')
    >>> score({"mean": 12.3456, "std": 0.1234}, PrimaryMetric("perplexity", "down", 1, float("inf")))
    '12.35 \u00b1 0.12'
    """
    mean, deviation = value["mean"], value["std"]
    if mean is None:
        return "-"
    forms = (".1f", ".1f") if metric.is_share else (".4g", ".2g")
    shown = "" if deviation is None else f" \u00b1 {metric.scale * deviation:{forms[1]}}"
    return f"{metric.scale * mean:{forms[0]}}{shown}"


def number(value: float) -> str:
    """Write a number with at least three digits, and decimals only if these take fewer.

    >>> [number(value) for value in (1234.5, 12.345, 0.01234, 0.0)]
    ['1,234', '12.3', '0.0123', '0']
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
