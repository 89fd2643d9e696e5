"""Summarise a replay as one JSON object, and as tables for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from raysim.analysis.replay.fedavg import why_unknown
from raysim.analysis.replay.finished_run import FinishedRun
from raysim.analysis.replay.run import Replay
from raysim.clock import outcomes
from raysim.config.metric import metric_in
from raysim.core.formatting import AGAINST_FEDAVG, NOT_COUNTED, duration
from raysim.core.tensors import Columns
from raysim.experiment.cost import Prices, costs_of
from raysim.simulation.participation import Participation
from raysim.simulation.state import summary_of, targets_of

COMPARED = (
    "rounds", "simulated_s", "energy_j", "down_bytes", "up_bytes", "train_flops", "fates", "empty_rounds", "targets",
)  # fmt: skip
"""Entries of the run's own summary that are shown beside those of the replay."""


PERCENTS = {f"{name}_percent_of_fedavg": f"{title} against FedAvg" for name, title in AGAINST_FEDAVG.items()}
"""Title of each per cent of FedAvg's costs, by its entry of the summary."""
AMOUNTS = (
    ("energy of the devices", "energy_j", "J"),
    ("download", "down_bytes", "B"),
    ("upload", "up_bytes", "B"),
    ("training", "train_flops", "FLOP"),
)
"""Title, entry of the summary, and unit of the amounts in the table of the run."""

SCORES = ("metrics", "widths")
"""Scores of the final model; a replay trains nothing, so it has the run's own, or none."""


def summary_from(replay: Replay) -> dict[str, Any]:
    """Return what a replayed run spends and reaches, under the names of a run's own summary."""
    recorded, last = replay.recorded, replay.rounds[-1]
    settings, totals, knows = recorded.settings, last.totals, last.knows_score
    metric = recorded.primary
    prices = Prices(**settings.costs.model_dump())
    costs = costs_of(prices, totals.energy_j, wall_s=0.0)  # the cost of the machines is not replayed
    return {
        "replayed_from": {"run": recorded.name, "run_id": recorded.summary.get("run_id")},
        "experiment": settings.experiment,
        "method": settings.method.name,
        "seed": settings.seed,
        "rounds": last.round,
        **metric.entries,
        metric.name: totals.primary if knows else None,
        metric.recorded("best_primary"): totals.best_primary if knows else None,
        **{name: recorded.summary[name] if knows else None for name in SCORES if name in recorded.summary},
        **summary_of(totals),
        "why_no_fedavg": why_unknown(recorded),
        "targets": _targets(replay),
        "costs": {name: cost for name, cost in costs.items() if name.startswith("device_")},
        "full_model": recorded.summary["full_model"],
        "num_classes": recorded.summary.get("num_classes"),
        "round_s": [each.round_s for each in replay.rounds],
        "tiers": tier_rows(replay),
        "never_counted": _never_counted(replay),
        "exact": not replay.unknown,
        "unknown": [asdict(each) for each in replay.unknown],
        "flagged_rounds": replay.flagged_rounds,
        "flagged_client_rounds": sum(int(replay.changed[each.clients["row"]].sum()) for each in replay.rounds),
        "recorded": _recorded(recorded),
    }


def _never_counted(replay: Replay) -> dict[str, Any]:
    found = Participation(replay.devices)
    for each in replay.rounds:
        found.add(each.clients["client"], each.clients["fate"])
    return found.never_counted()


def _recorded(recorded: FinishedRun) -> dict[str, Any]:
    """Return what the run spent and reached; runs of earlier versions were compared with another FedAvg."""
    found = {name: recorded.summary.get(name) for name in COMPARED}
    is_known = recorded.summary.get("fedavg") is not None
    return found | {name: recorded.summary.get(name) if is_known else None for name in PERCENTS}


def _targets(replay: Replay) -> list[dict[str, Any]]:
    """Return when targets are reached; `known` is false if the score is not known before that."""
    last = replay.rounds[-1]
    recorded = replay.recorded
    targets = targets_of(last.totals, recorded.settings.evaluation.targets, recorded.primary)
    return [target | {"known": last.knows_score or target["round"] is not None} for target in targets]


def tier_rows(replay: Replay) -> list[dict[str, Any]]:
    """Return the mean seconds of a client's work for each tier of the replay's devices, recorded and replayed.

    Both are of the clients that are in the tier now; `was` names the tiers that they had in the run.
    """
    recorded, devices = replay.recorded.clients, replay.devices
    names = ("client", "total_s", "fate")
    now = {name: np.concatenate([each.clients[name] for each in replay.rounds]) for name in names}
    rows = []
    for index, tier in enumerate(devices.tiers):
        before, after = (_at_work(table, devices.tier_of[table["client"]] == index) for table in (recorded, now))
        if before.any() or after.any():
            was = sorted({str(name) for name in recorded["tier"][before]})
            recorded_s, replayed_s = _mean(recorded["total_s"][before]), _mean(now["total_s"][after])
            rows.append({"tier": tier, "was": was, "recorded_s": recorded_s, "replayed_s": replayed_s})
    return rows


def _at_work(clients: Columns, members: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(members & np.isin(clients["fate"], outcomes.ABSENT, invert=True))


def _mean(seconds: NDArray[np.float64]) -> float | None:
    return float(seconds.mean()) if len(seconds) else None


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return the run before and after, and its tiers before and after, as tables."""
    before, run = summary["recorded"], Table(title=f"{summary['method']}, {summary['rounds']} rounds, replayed")
    for heading in ("", "recorded", "replayed"):
        run.add_column(heading, justify="right" if heading else "left")
    run.add_row("simulated time", duration(before["simulated_s"]), duration(summary["simulated_s"]))
    for name, key, unit in AMOUNTS:
        run.add_row(name, *(_amount(each[key], unit) for each in (before, summary)))
    for key, title in PERCENTS.items():
        if before[key] is not None or summary[key] is not None:
            run.add_row(title, *("-" if each[key] is None else f"{each[key]:.1f} %" for each in (before, summary)))
    run.add_row("client rounds that count", *(_counted(each["fates"]) for each in (before, summary)))
    run.add_row("rounds without any update", *(str(each["empty_rounds"]) for each in (before, summary)))
    metric = metric_in(summary)
    for was, target in zip(before["targets"], summary["targets"], strict=True):
        run.add_row(f"{metric.title} {target[metric.name]:g}", _target(was), _target(target))
    tiers = Table(title="mean seconds of a client's work")
    moved = any(row["was"] != [row["tier"]] for row in summary["tiers"])
    for heading in ("tier", *(["in the run"] if moved else []), "recorded", "replayed"):
        tiers.add_column(heading, justify="right" if heading in ("recorded", "replayed") else "left")
    for row in summary["tiers"]:
        seconds = ("-" if each is None else f"{each:.2f}" for each in (row["recorded_s"], row["replayed_s"]))
        tiers.add_row(row["tier"], *([", ".join(row["was"])] if moved else []), *seconds)
    return [run, tiers]


def _amount(number: float, unit: str) -> str:
    return NOT_COUNTED if unit == "J" and not number else in_unit(number, unit)


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
    why = summary["why_no_fedavg"]
    not_compared = [f"not compared with FedAvg: {why}"] if why else []
    if summary["exact"]:
        return [*not_compared, "exact: nothing of this depends on another model or on other selected clients"]
    lines = [*not_compared, "not known, or assumed to be as recorded:"]
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
