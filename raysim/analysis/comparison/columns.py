"""Write the table of a comparison as text: its columns for people, and unrounded lines for CSV."""

from collections.abc import Mapping, Sequence
from typing import Any

from raysim.analysis.comparison.labels import shortly
from raysim.analysis.comparison.table import SPENT
from raysim.analysis.tables.columns import ACCURACIES, Column, accuracy, number

UNITS = {"megabytes": "MB", "simulated_s": "s", "energy_j": "J"}
"""The units of the costs."""
NAMES = {"megabytes": "bytes moved", "simulated_s": "simulated time", "energy_j": "devices"}
"""The headings above the units."""
STAR = "*"
"""Marks a comparison with the baseline that only some of the row's seeds allow."""
REACHED, SPENT_PART, ABOUT = "reached", "spent", "about"
"""Parts of the table where it is too wide for one; each target is another one."""


def columns_of(table: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns of the table without empty ones.

    Args:
        table: The figures of each row, as of `table.table_of`.
    """
    found = [
        Column("", "row", [row["label"] for row in table], is_text=True),
        Column("", "seeds", [_seeds(row) for row in table], part=REACHED),
        *(
            Column("accuracy %", lower, [accuracy(row[name]) for row in table], part=REACHED)
            for name, lower in ACCURACIES.items()
        ),
        Column("points", "to baseline", [_points(row) for row in table], part=REACHED),
        Column("pruned", "%", [_percent(row["pruning_ratio"]) for row in table], part=REACHED),
        *(
            Column(NAMES[name], UNITS[name], [_cost(row[name], row["is_whole"]) for row in table], part=SPENT_PART)
            for name in _known_costs(table)
        ),
    ]
    for index in range(len(table[0]["targets"])):
        found += _target_columns(table, [row["targets"][index] for row in table])
    on_front = [" ".join(UNITS[name] for name in row["fronts"]) for row in table]
    found += [
        Column("", "on front", on_front, is_text=True, wraps=False, part=SPENT_PART),
        Column("other", "settings", [shortly(row["other_settings"]) for row in table], is_text=True, part=ABOUT),
        Column("", "state", [_state(row) for row in table], is_text=True, part=ABOUT),
    ]
    return [column for column in found if any(cell not in ("", "-") for cell in column.cells)]


def _target_columns(table: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns with the costs of one target in each row."""
    upper = f"to {100 * costs[0]['accuracy']:g} %"
    rounds = Column(upper, "rounds", [_rounds(each) for each in costs], part=upper)
    return [
        rounds,
        *(
            Column(upper, UNITS[name], [_cost(each[name], is_whole=True) for each in costs], part=upper)
            for name in _known_costs(table)
        ),
    ]


def _known_costs(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the costs that some row has."""
    return [name for name in SPENT if any(row[name]["mean"] is not None for row in table)]


def _seeds(row: Mapping[str, Any]) -> str:
    total = len(row["seeds"])
    return f"{row['counted']} of {total}" if row["counted"] < total else str(total)


def _points(row: Mapping[str, Any]) -> str:
    return "-" if row["points"] is None else f"{row['points']:+.1f}{_star(row['points_are_all'])}"


def _star(is_all: bool) -> str:
    return "" if is_all else STAR


def _percent(value: Mapping[str, float | None]) -> str:
    return "-" if value["mean"] is None else f"{100 * value['mean']:.1f}"


def _cost(value: Mapping[str, Any], is_whole: bool) -> str:
    """Write a cost with its share of the baseline's, which means nothing for runs that did not finish."""
    if value["mean"] is None:
        return "-"
    has_share = value["percent"] is not None and is_whole
    share = f" ({value['percent']:.0f} %{_star(value['is_all'])})" if has_share else ""
    return f"{number(value['mean'])}{share}"


def _rounds(target: Mapping[str, Any]) -> str:
    if not target["reached"]:
        return f"not reached (0 of {target['of']})"
    mean, deviation = target["rounds"]["mean"], target["rounds"]["std"]
    rounds = f"{mean:.3g}" + (f" \u00b1 {deviation:.1f}" if deviation else "")
    return rounds if target["reached"] == target["of"] else f"{rounds} ({target['reached']} of {target['of']})"


def _state(row: Mapping[str, Any]) -> str:
    if row["is_whole"]:
        return ""
    done = row["rounds"]["mean"]
    return f"{' and '.join(sorted(set(row['states'])))}, " + (f"{done:.3g} rounds" if done else "no round")


def csv_lines(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the table unrounded: deviations, and per cent of the baseline with its number of seeds."""
    lines = []
    for row in table:
        line: dict[str, Any] = {
            "row": row["label"],
            "method": row["method"],
            "seeds": len(row["seeds"]),
            "counted": row["counted"],
            "whole": row["is_whole"],
            "points": row["points"],
            "points_seeds": len(row["points_seeds"]),
        }
        for name, value in row.items():
            if isinstance(value, dict) and "mean" in value:
                line |= _csv_cells(name, value)
        for target in row["targets"]:
            prefix = f"to_{target['accuracy']:g}"
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
