"""Write the table of a comparison as text: its columns for people, and unrounded lines for CSV."""

from collections.abc import Mapping, Sequence
from typing import Any

from raysim.analysis.comparison.figures import FURTHER, WIDTH
from raysim.analysis.comparison.labels import shortly
from raysim.analysis.comparison.table import SPENT
from raysim.analysis.tables.columns import UNITS, Column, cost, reached_columns, score, score_columns
from raysim.config.metric import metric_in, metric_of_any

NAMES = {"megabytes": "bytes moved", "simulated_s": "simulated time", "energy_j": "devices"}
"""The headings above the units."""
REACHED, SPENT_PART, ABOUT, WIDTHS = "reached", "spent", "about", "widths"
"""Parts of the table where it is too wide for one; each target is another one."""


def columns_of(table: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns of the table without empty ones.

    Args:
        table: The figures of each row, as of `table.table_of`.
    """
    found = [
        Column("", "row", [row["label"] for row in table], is_text=True),
        Column("", "seeds", [_seeds(row) for row in table], part=REACHED),
        *score_columns(table, REACHED),
        Column("pruned", "%", [_percent(row["pruning_ratio"]) for row in table], part=REACHED),
        *(
            Column(NAMES[name], UNITS[name], [cost(row[name], row["is_whole"]) for row in table], part=SPENT_PART)
            for name in _known_costs(table)
        ),
    ]
    found += [*_width_columns(table), *_further_columns(table)]
    for index in range(len(table[0]["targets"])):
        costs = {name: UNITS[name] for name in _known_costs(table)}
        found += reached_columns([row["targets"][index] for row in table], costs, metric=metric_in(table[0]))
    on_front = [" ".join(UNITS[name] for name in row["fronts"]) for row in table]
    found += [
        Column("", "on front", on_front, is_text=True, wraps=False, part=SPENT_PART),
        Column("other", "settings", [shortly(row["other_settings"]) for row in table], is_text=True, part=ABOUT),
        Column("", "state", [_state(row) for row in table], is_text=True, part=ABOUT),
    ]
    return [column for column in found if any(cell not in ("", "-") for cell in column.cells)]


def _width_columns(table: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the test scores of the global model cut to each width; none where no row has a narrower one."""
    metric = metric_in(table[0])
    before = metric.recorded(WIDTH)
    names = [name for name in table[0]["widths"] if name.startswith(before)]
    if all(float(name.removeprefix(before)) == 1 for name in names):
        return []
    upper = f"{metric.title} %" if metric.is_share else metric.title
    return [
        Column(
            f"{upper} cut to",
            name.removeprefix(before),
            [score(row["widths"][name], metric) for row in table],
            part=WIDTHS,
        )
        for name in names
    ]


def _further_columns(table: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the further metrics of the global model on the test set."""
    names = sorted(name for name in table[0]["widths"] if name.startswith(FURTHER))
    metrics = {name: metric_of_any(name.removeprefix(FURTHER)) for name in names}
    return [
        Column(
            "test %" if metric.is_share else "test",
            metric.name,
            [score(row["widths"][name], metric) for row in table],
            part=WIDTHS,
        )
        for name, metric in metrics.items()
    ]


def _known_costs(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the costs that some row has."""
    return [name for name in SPENT if any(row[name]["mean"] is not None for row in table)]


def _seeds(row: Mapping[str, Any]) -> str:
    total = len(row["seeds"])
    return f"{row['counted']} of {total}" if row["counted"] < total else str(total)


def _percent(value: Mapping[str, float | None]) -> str:
    return "-" if value["mean"] is None else f"{100 * value['mean']:.1f}"


def _state(row: Mapping[str, Any]) -> str:
    if row["is_whole"]:
        return ""
    done = row["rounds"]["mean"]
    return f"{' and '.join(sorted(set(row['states'])))}, " + (f"{done:.3g} rounds" if done else "no round")


def csv_lines(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the table unrounded: deviations, and per cent of the baseline with its number of seeds."""
    lines = []
    for row in table:
        metric = metric_in(row)
        line: dict[str, Any] = {
            "row": row["label"],
            "method": row["method"],
            "seeds": len(row["seeds"]),
            "counted": row["counted"],
            "whole": row["is_whole"],
            "leading": row["leading"],
            "points": row["points"],
            "points_low": row["points_low"],
            "points_high": row["points_high"],
            "points_seeds": len(row["points_seeds"]),
        }
        for name, value in row.items():
            if isinstance(value, dict) and "mean" in value:
                line |= _csv_cells(name, value)
        for name, value in row["widths"].items():
            line |= _csv_cells(name, value)
        for target in row["targets"]:
            prefix = f"to_{target[metric.name]:g}"
            line[f"{prefix}_reached"] = target["reached"]
            for name in ("rounds", *SPENT):
                line |= _csv_cells(f"{prefix}_{name}", target[name])
        line |= {f"on_front_{name}": name in row["fronts"] for name in SPENT}
        line["settings"] = shortly(row["settings"], at_most=len(row["settings"]))
        lines.append(line)
    return lines


def _csv_cells(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    cells = {f"{name}_{part}": value[part] for part in ("mean", "std", "percent")}
    return cells | {f"{name}_percent_seeds": len(value["percent_seeds"])}
