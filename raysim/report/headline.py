"""What the run reached and spent, in a few figures, against FedAvg."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from typing import Any

import numpy as np

from raysim.clock.modes import MODES
from raysim.clock.outcomes import COUNTED
from raysim.core.formatting import duration, percent, with_unit
from raysim.report.clients import ClientsOfRounds
from raysim.report.fedavg import FedAvg
from raysim.report.fragments import Card, cards, paragraph, table
from raysim.report.page import Section
from raysim.report.source import Recorded

DENSE = (
    "FedAvg stands for the same clients in the same rounds, each training the full model. Its bytes and FLOPs were "
    "counted beside the run's own. Its accuracy takes a run of its own: `raysim report RUN --baseline OTHER`."
)
TIMED = (
    " Its time and energy are those of the same devices and links, the server waiting for the last client whose work "
    "counted."
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run reached and spent; NaN where that is not known."""

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
"""What figures are called, and how they are written."""
ENDED = {"failed": "has failed", "stopped": "was stopped", "stopped early": "was stopped early, for better trials"}
"""How a run has ended, by its state."""


def section(
    recorded: Recorded, clients: ClientsOfRounds, fedavg: FedAvg | None, baseline: Recorded | None = None
) -> Section:
    """Return cards, the table against FedAvg or another run, work that was lost and what targets cost."""
    own = figures_of(recorded)
    other = dense_figures(recorded, own, fedavg) if baseline is None else figures_of(baseline)
    name, text = ("FedAvg", DENSE) if baseline is None else _named(baseline)
    if baseline is None and fedavg is None:
        starts_together = MODES[recorded.settings["clock"]["mode"]].starts_together
        why = (
            "the records do not tell enough"
            if starts_together
            else "asynchronous rounds have no counterpart in FedAvg's"
        )
        text += f" Time and energy are not compared: {why}."
    elif baseline is None:
        text += TIMED
    headings = ("", "this run", name, f"per cent of {name}")
    html = cards(_cards(recorded, own, other, name, clients.pruning_ratio)) + table(headings, _rows(own, other))
    if how := standing(recorded):
        html = paragraph(how) + html
    html += paragraph(_lost(clients))
    targets = recorded.summary.get("targets", [])
    if targets:
        columns = ("target accuracy", "round", "simulated time", "moved", "FLOPs", "energy")
        html += table(columns, [_target(each) for each in targets])
    return Section("headline", "Headline", text, html=html)


def standing(recorded: Recorded) -> str:
    """Return how a run stands that has not ended as it should, and how much of it is told; empty if it has.

    What its summary tells goes before run.json: interrupted after its last round, a run has one and is whole.
    """
    told, rounds = recorded.summary or recorded.noted, len(recorded.rounds["round"])
    failure, state = told.get("failure"), told.get("state")
    if recorded.summary and not failure and not state:
        return ""
    how = f"has failed ({failure})" if failure else ENDED.get(state or "", "has not finished")
    return f"This run {how}: {rounds:,} of {recorded.settings['rounds']:,} rounds are told here."


def figures_of(recorded: Recorded) -> Figures:
    """Return what a run had reached and spent after its last round."""
    accuracy = recorded.rounds["accuracy"].astype(np.float64)
    measured = accuracy[~np.isnan(accuracy)]
    spent = {name: _last(recorded, name) for name in ("bytes", "train_flops", "simulated_s", "energy_j")}
    return Figures(accuracy=float(measured[-1]) if len(measured) else nan, **spent)


def dense_figures(recorded: Recorded, own: Figures, fedavg: FedAvg | None) -> Figures:
    """Return what FedAvg would have spent in the run's place."""

    def whole(value: float, group: str) -> float:
        share = _last(recorded, f"{group}/percent_of_fedavg")
        return 100 * value / share if share else nan

    return Figures(
        bytes=whole(own.bytes, "traffic"),
        train_flops=whole(own.train_flops, "compute"),
        simulated_s=nan if fedavg is None else fedavg.simulated_s,
        energy_j=nan if fedavg is None else fedavg.energy_j,
    )


def _last(recorded: Recorded, name: str) -> float:
    column = recorded.rounds.get(name)
    return nan if column is None else float(column[-1])


def _named(baseline: Recorded) -> tuple[str, str]:
    settings = baseline.settings
    name = str(settings["method"]["name"])
    return name, f"Against a run of {name} with seed {settings['seed']}: {baseline.name}."


def _share(value: float, of: float) -> float:
    return 100 * value / of if of else nan


def _cards(recorded: Recorded, own: Figures, other: Figures, name: str, pruning_ratio: float) -> list[Card]:
    best = recorded.rounds.get("accuracy/best")
    told = [] if best is None else [f"best {percent(100 * float(np.nanmax(best.astype(np.float64))), 2)}"]
    told += [f"{name} {percent(100 * other.accuracy, 2)}"] if isfinite(other.accuracy) else []
    shown = [Card("test accuracy", percent(100 * own.accuracy, 2), ", ".join(told))]
    for field in list(SHOWN)[1:]:
        what, text = SHOWN[field]
        value = getattr(own, field)
        share = _share(value, getattr(other, field))
        if value:
            more = f"of {name}'s; {text(value)}" if isfinite(share) else ""
            shown.append(Card(what, percent(share) if isfinite(share) else text(value), more))
    if isfinite(pruning_ratio):
        shown.append(Card("pruning ratio", percent(100 * pruning_ratio), "of the parameters, mean over clients"))
    return shown


def _rows(own: Figures, other: Figures) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for field, (what, text) in SHOWN.items():
        mine, theirs = getattr(own, field), getattr(other, field)
        if field == "energy_j" and not mine:
            rows.append((what, "not counted", "-", "-"))
        else:
            rows.append((what, text(mine), text(theirs), percent(_share(mine, theirs))))
    return rows


def _lost(clients: ClientsOfRounds) -> str:
    sums = {outcome: int(counts.sum()) for outcome, counts in clients.outcomes.items()}
    total, counted = sum(sums.values()), sums.pop(COUNTED, 0)
    lost = [f"{count:,} {outcome}" for outcome, count in sorted(sums.items(), key=lambda each: -each[1]) if count]
    if not lost:
        return f"The work of all {total:,} clients that were asked in {len(clients.round):,} rounds counted."
    return f"Of {total:,} clients that were asked, the work of {counted:,} counted; lost were {', '.join(lost)}."


def _target(target: Mapping[str, Any]) -> tuple[str, ...]:
    if target["round"] is None:
        return (percent(100 * target["accuracy"]), "never", "-", "-", "-", "-")
    return (
        percent(100 * target["accuracy"]), f"{target['round']:,}", duration(target["simulated_s"]),
        with_unit(target["bytes"], "B"), with_unit(target["train_flops"], "FLOP"), with_unit(target["energy_j"], "J"),
    )  # fmt: skip
