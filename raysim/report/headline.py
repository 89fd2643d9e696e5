"""Show what a run reached and spent in a few figures, compared with FedAvg or with another run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from typing import Any

import numpy as np

from raysim.clock.modes import MODES
from raysim.clock.outcomes import COUNTED
from raysim.core.formatting import duration, percent, with_unit
from raysim.report.clients import ClientStatistics
from raysim.report.fedavg import FedAvg
from raysim.report.fragments import Card, cards, paragraph, table
from raysim.report.page import Section
from raysim.tracking.run_reader import RunReader

FEDAVG = (
    "FedAvg means the same clients in the same rounds, each training the full model. Its bytes and FLOPs were "
    "counted along with the run's own. Its accuracy needs a run of FedAvg: `raysim report RUN --baseline OTHER`."
)
TIMED = (
    " Its time and energy are those of the same devices and links, with a server that waits for the last client that "
    "counted."
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Costs and results of a run; NaN where they are not known."""

    accuracy: float = nan
    bytes: float = nan
    train_flops: float = nan
    simulated_s: float = nan
    energy_j: float = nan


SHOWN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("test accuracy", lambda value: percent(100 * value, 2)),
    "bytes": ("bytes moved", partial(with_unit, unit="B")),
    "train_flops": ("FLOPs trained", partial(with_unit, unit="FLOP")),
    "simulated_s": ("simulated time", lambda value: duration(value) if isfinite(value) else "-"),
    "energy_j": ("energy of the devices", partial(with_unit, unit="J")),
}
"""The title of each figure, and how it is written."""
ENDED = {"failed": "has failed", "stopped": "was stopped", "stopped early": "was stopped early, for better trials"}
"""How a run ended, by its state."""


def section(
    run: RunReader, clients: ClientStatistics, fedavg: FedAvg | None, baseline: RunReader | None = None
) -> Section:
    """Return cards, the table against FedAvg or another run, the lost work, and the costs of targets."""
    own = figures_of(run)
    other = fedavg_figures(run, own, fedavg) if baseline is None else figures_of(baseline)
    name, text = ("FedAvg", FEDAVG) if baseline is None else _named(baseline)
    if baseline is None and fedavg is None:
        starts_together = MODES[run.settings.clock.mode].starts_together
        why = "the records lack the necessary columns" if starts_together else "FedAvg has no asynchronous rounds"
        text += f" Time and energy are not compared: {why}."
    elif baseline is None:
        text += TIMED
    headings = ("", "this run", name, f"per cent of {name}")
    html = cards(_cards(run, own, other, name, clients.pruning_ratio)) + table(headings, _rows(own, other))
    if sentence := incomplete(run):
        html = paragraph(sentence) + html
    html += paragraph(_lost(clients))
    targets = run.summary.get("targets", [])
    if targets:
        columns = ("target accuracy", "round", "simulated time", "moved", "FLOPs", "energy")
        html += table(columns, [_target(each) for each in targets])
    return Section("headline", "Headline", text, html=html)


def incomplete(run: RunReader) -> str:
    """Return a sentence on how a run ended that did not finish, and on its rounds; empty for a finished run."""
    if run.state == "finished":
        return ""
    failure = (run.summary or run.metadata).get("failure")
    how = f"has failed ({failure})" if failure else ENDED.get(run.state, "has not finished")
    return f"This run {how}: {len(run.rounds['round']):,} of {run.settings.rounds:,} rounds are shown here."


def figures_of(run: RunReader) -> Figures:
    """Return what a run had reached and spent after its last round."""
    accuracy = run.rounds["accuracy"].astype(np.float64)
    measured = accuracy[~np.isnan(accuracy)]
    spent = {name: _last(run, name) for name in ("bytes", "train_flops", "simulated_s", "energy_j")}
    return Figures(accuracy=float(measured[-1]) if len(measured) else nan, **spent)


def fedavg_figures(run: RunReader, own: Figures, fedavg: FedAvg | None) -> Figures:
    """Return what FedAvg would have spent instead."""

    def whole(value: float, group: str) -> float:
        share = _last(run, f"{group}/percent_of_fedavg")
        return 100 * value / share if share else nan

    return Figures(
        bytes=whole(own.bytes, "traffic"),
        train_flops=whole(own.train_flops, "compute"),
        simulated_s=nan if fedavg is None else fedavg.simulated_s,
        energy_j=nan if fedavg is None else fedavg.energy_j,
    )


def _last(run: RunReader, name: str) -> float:
    column = run.rounds.get(name)
    return nan if column is None else float(column[-1])


def _named(baseline: RunReader) -> tuple[str, str]:
    name = baseline.settings.method.name
    return name, f"Compared with a run of {name} with seed {baseline.settings.seed}: {baseline.name}."


def _share(value: float, of: float) -> float:
    return 100 * value / of if of else nan


def _cards(run: RunReader, own: Figures, other: Figures, name: str, pruning_ratio: float) -> list[Card]:
    best = run.rounds.get("accuracy/best")
    remarks = [] if best is None else [f"best {percent(100 * float(np.nanmax(best.astype(np.float64))), 2)}"]
    remarks += [f"{name} {percent(100 * other.accuracy, 2)}"] if isfinite(other.accuracy) else []
    shown = [Card("test accuracy", percent(100 * own.accuracy, 2), ", ".join(remarks))]
    for field in list(SHOWN)[1:]:
        title, text = SHOWN[field]
        value = getattr(own, field)
        share = _share(value, getattr(other, field))
        if value:
            remark = f"of {name}'s; {text(value)}" if isfinite(share) else ""
            shown.append(Card(title, percent(share) if isfinite(share) else text(value), remark))
    if isfinite(pruning_ratio):
        shown.append(Card("pruning ratio", percent(100 * pruning_ratio), "of the parameters, mean over clients"))
    return shown


def _rows(own: Figures, other: Figures) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for field, (title, text) in SHOWN.items():
        mine, theirs = getattr(own, field), getattr(other, field)
        if field == "energy_j" and not mine:
            rows.append((title, "not counted", "-", "-"))
        else:
            rows.append((title, text(mine), text(theirs), percent(_share(mine, theirs))))
    return rows


def _lost(clients: ClientStatistics) -> str:
    sums = {outcome: int(counts.sum()) for outcome, counts in clients.outcomes.items()}
    total, counted = sum(sums.values()), sums.pop(COUNTED, 0)
    lost = [f"{count:,} {outcome}" for outcome, count in sorted(sums.items(), key=lambda each: -each[1]) if count]
    if not lost:
        return f"The work of all {total:,} clients that were selected in {len(clients.round):,} rounds counted."
    return (
        f"Of {total:,} clients that were selected, the work of {counted:,} counted; the rest was lost: "
        f"{', '.join(lost)}."
    )


def _target(target: Mapping[str, Any]) -> tuple[str, ...]:
    if target["round"] is None:
        return (percent(100 * target["accuracy"]), "never", "-", "-", "-", "-")
    return (
        percent(100 * target["accuracy"]),
        f"{target['round']:,}",
        duration(target["simulated_s"]),
        with_unit(target["bytes"], "B"),
        with_unit(target["train_flops"], "FLOP"),
        with_unit(target["energy_j"], "J"),
    )
