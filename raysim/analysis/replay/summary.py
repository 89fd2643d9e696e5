"""Summarise a replay as one JSON object, and as tables for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from raysim.analysis.replay.run import Replay
from raysim.clock import outcomes
from raysim.core.formatting import duration
from raysim.experiment.cost import Prices, costs_of
from raysim.simulation.state import summary_of, targets_of

COMPARED = (
    "rounds", "simulated_s", "energy_j", "down_bytes", "up_bytes", "train_flops", "fates", "empty_rounds", "targets",
)  # fmt: skip
"""Entries of the run's own summary that are shown beside those of the replay."""


AMOUNTS = (
    ("energy of the devices", "energy_j", "J"),
    ("download", "down_bytes", "B"),
    ("upload", "up_bytes", "B"),
    ("training", "train_flops", "FLOP"),
)
"""Title, entry of the summary, and unit of the amounts in the table of the run."""


def summary_from(replay: Replay) -> dict[str, Any]:
    """Return what a replayed run spends and reaches, under the names of a run's own summary."""
    recorded, last = replay.recorded, replay.rounds[-1]
    settings, totals, knows = recorded.settings, last.totals, last.knows_accuracy
    prices = Prices(**settings.costs.model_dump())
    costs = costs_of(prices, totals.energy_j, wall_s=0.0)  # the cost of the machines is not replayed
    return {
        "replayed_from": {"run": recorded.name, "run_id": recorded.summary.get("run_id")},
        "experiment": settings.experiment,
        "method": settings.method.name,
        "seed": settings.seed,
        "rounds": last.round,
        "accuracy": totals.accuracy if knows else None,
        "best_accuracy": totals.best_accuracy if knows else None,
        **summary_of(totals),
        "targets": _targets(replay),
        "costs": {name: cost for name, cost in costs.items() if name.startswith("device_")},
        "full_model": recorded.summary["full_model"],
        "round_s": [each.round_s for each in replay.rounds],
        "tiers": tier_rows(replay),
        "exact": not replay.unknown,
        "unknown": [asdict(each) for each in replay.unknown],
        "flagged_rounds": replay.flagged_rounds,
        "flagged_client_rounds": sum(int(replay.changed[each.clients["row"]].sum()) for each in replay.rounds),
        "recorded": {name: recorded.summary.get(name) for name in COMPARED},
    }


def _targets(replay: Replay) -> list[dict[str, Any]]:
    """Return when targets are reached; `known` is false if the accuracy is not known before that."""
    last = replay.rounds[-1]
    targets = targets_of(last.totals, replay.recorded.settings.evaluation.targets)
    return [target | {"known": last.knows_accuracy or target["round"] is not None} for target in targets]


def tier_rows(replay: Replay) -> list[dict[str, Any]]:
    """Return the mean seconds of a client's work for each tier of the run, recorded and replayed."""
    recorded = replay.recorded.clients
    names = ("row", "total_s", "fate")
    now = {name: np.concatenate([each.clients[name] for each in replay.rounds]) for name in names}
    rows = []
    for tier in np.unique(recorded["tier"]):
        before = (recorded["tier"] == tier) & np.isin(recorded["fate"], outcomes.ABSENT, invert=True)
        after = (recorded["tier"][now["row"]] == tier) & np.isin(now["fate"], outcomes.ABSENT, invert=True)
        recorded_s, replayed_s = _mean(recorded["total_s"][before]), _mean(now["total_s"][after])
        rows.append({"tier": str(tier), "recorded_s": recorded_s, "replayed_s": replayed_s})
    return rows


def _mean(seconds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    return float(seconds.mean()) if len(seconds) else None


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return the run before and after, and its tiers before and after, as tables."""
    before, run = summary["recorded"], Table(title=f"{summary['method']}, {summary['rounds']} rounds, replayed")
    for heading in ("", "recorded", "replayed"):
        run.add_column(heading, justify="right" if heading else "left")
    run.add_row("simulated time", duration(before["simulated_s"]), duration(summary["simulated_s"]))
    for name, key, unit in AMOUNTS:
        run.add_row(name, *(in_unit(each[key], unit) for each in (before, summary)))
    run.add_row("client rounds that count", *(_counted(each["fates"]) for each in (before, summary)))
    run.add_row("rounds without any update", *(str(each["empty_rounds"]) for each in (before, summary)))
    for was, target in zip(before["targets"], summary["targets"], strict=True):
        run.add_row(f"accuracy {target['accuracy']:g}", _target(was), _target(target))
    tiers = Table(title="mean seconds of a client's work")
    for heading in ("tier", "recorded", "replayed"):
        tiers.add_column(heading, justify="left" if heading == "tier" else "right")
    for row in summary["tiers"]:
        seconds = (row["recorded_s"], row["replayed_s"])
        tiers.add_row(row["tier"], *("-" if each is None else f"{each:.2f}" for each in seconds))
    return [run, tiers]


def in_unit(number: float, unit: str) -> str:
    """Write a number with the prefix of its size.

    >>> [in_unit(number, "B") for number in (0, 812, 78_648, 999_960, 4.5e6, 1.2e19)]
    ['0 B', '812 B', '78.6 kB', '1.0 MB', '4.5 MB', '12,000.0 PB']
    >>> in_unit(0.25, "J"), in_unit(812.5, "J")
    ('0.25 J', '812.5 J')
    """
    if number < 1000:
        return f"{number:.4g} {unit}"
    power = next((power for power in range(1, 5) if round(number / 1000**power, 1) < 1000), 5)
    return f"{number / 1000**power:,.1f} {' kMGTP'[power]}{unit}"


def _counted(numbers: Mapping[str, int]) -> str:
    return f"{numbers.get(outcomes.COUNTED, 0)} of {sum(numbers.values())}"


def _target(target: Mapping[str, Any]) -> str:
    if target["round"] is None:
        return "not reached" if target.get("known", True) else "not known"
    return f"round {target['round']}, {duration(target['simulated_s'])}"


def unknown_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return what the replay cannot know, one line each."""
    if summary["exact"]:
        return ["exact: nothing of this depends on another model or on other selected clients"]
    lines = ["not known, or assumed to be as recorded:"]
    for each in summary["unknown"]:
        counts = [f"{each[name]} {name.replace('_', ' ')}" for name in ("client_rounds", "rounds") if each[name]]
        lines.append(f"  {each['reason']}" + (f" ({', '.join(counts)})" if counts else ""))
    flagged = summary["flagged_rounds"]
    return lines + (
        [f"  rounds in which other work counts, or others would have been selected: {in_short(flagged)}"]
        if flagged
        else []
    )


def in_short(rounds: Sequence[int]) -> str:
    """Write round numbers, consecutive ones as a range.

    >>> in_short([1, 2, 3, 5, 8, 9])
    '1-3, 5, 8-9'
    """
    parts: list[list[int]] = []
    for round in rounds:
        if parts and parts[-1][1] == round - 1:
            parts[-1][1] = round
        else:
            parts.append([round, round])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
