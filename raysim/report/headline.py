"""Show what a run reached and spent in a few figures, compared with FedAvg or with another run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from typing import Any

import numpy as np

from raysim.clock import outcomes
from raysim.config.metric import PrimaryMetric, metric_of_any
from raysim.core.formatting import NOT_COUNTED, duration, percent, with_unit
from raysim.report.clients import ClientStatistics
from raysim.report.fragments import Card, cards, paragraph, table
from raysim.report.page import Section
from raysim.simulation.fedavg import why_not_compared
from raysim.simulation.participation import never_counted_lines
from raysim.tracking.run_reader import RunReader

FEDAVG = (
    "FedAvg means as many rounds under the same clock mode, deadline, availability and batteries, in which every "
    "client trains the full model. Its {metric} needs a run of FedAvg: `raysim report RUN --baseline OTHER`."
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Costs and results of a run; NaN where they are not known."""

    primary: float = nan
    bytes: float = nan
    train_flops: float = nan
    simulated_s: float = nan
    energy_j: float = nan
    client_rounds: float = nan


SHOWN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "bytes": ("bytes moved", partial(with_unit, unit="B")),
    "train_flops": ("FLOPs trained", partial(with_unit, unit="FLOP")),
    "simulated_s": ("simulated time", lambda value: duration(value) if isfinite(value) else "-"),
    "energy_j": ("energy of the devices", partial(with_unit, unit="J")),
    "client_rounds": ("client rounds that count", lambda value: f"{value:,.0f}" if isfinite(value) else "-"),
}
"""The title of each figure beside the primary metric, and how it is written."""
ENDED = {"failed": "has failed", "stopped": "was stopped", "stopped early": "was stopped early, for better trials"}
"""How a run ended, by its state."""


def section(run: RunReader, clients: ClientStatistics, baseline: RunReader | None = None) -> Section:
    """Return cards, the table against FedAvg or another run, the lost work, and the costs of targets."""
    own = figures_of(run)
    other = fedavg_figures(run) if baseline is None else figures_of(baseline)
    name, text = ("FedAvg", FEDAVG.format(metric=run.primary.title)) if baseline is None else _named(baseline)
    if baseline is None and not isfinite(other.bytes):
        text += f" It is not compared: {_why_not(run)}."
    headings = ("", "this run", name, f"per cent of {name}")
    html = cards(_cards(run, own, other, name, clients.pruning_ratio)) + table(
        headings, _rows(own, other, run.primary)
    )
    if sentence := incomplete(run):
        html = paragraph(sentence) + html
    html += paragraph(_lost(clients))
    for line in () if clients.never_counted is None else never_counted_lines(clients.never_counted):
        html += paragraph(f"{line[0].upper()}{line[1:]}.")
    html += _widths(run) + _further(run)
    targets = run.summary.get("targets", [])
    if targets:
        columns = (f"target {run.primary.title}", "round", "simulated time", "moved", "FLOPs", "energy")
        html += table(columns, [_target(each, run.primary) for each in targets])
    return Section("headline", "Headline", text, html=html)


def _why_not(run: RunReader) -> str:
    settings = run.settings
    why = why_not_compared(settings.selection.rule, settings.stop.given)
    return why or "the records come from a version that compared runs with another FedAvg"


def incomplete(run: RunReader) -> str:
    """Return a sentence on how a run ended that did not finish, and on its rounds; empty for a finished run."""
    if run.state == "finished":
        return ""
    failure = (run.summary or run.metadata).get("failure")
    how = f"has failed ({failure})" if failure else ENDED.get(run.state, "has not finished")
    return f"This run {how}: {len(run.rounds['round']):,} of {run.settings.rounds:,} rounds are shown here."


def figures_of(run: RunReader) -> Figures:
    """Return what a run had reached and spent after its last round."""
    values = run.rounds[run.primary.name].astype(np.float64)
    measured = values[~np.isnan(values)]
    spent = {name: _last(run, name) for name in ("bytes", "train_flops", "simulated_s", "energy_j")}
    counted = run.rounds.get("clients/counted")
    total = nan if counted is None else float(np.nansum(counted))
    return Figures(primary=float(measured[-1]) if len(measured) else nan, client_rounds=total, **spent)


def fedavg_figures(run: RunReader) -> Figures:
    """Return what FedAvg would have spent instead; NaN where that is not known."""
    names = ("bytes", "train_flops", "simulated_s", "energy_j", "client_rounds")
    return Figures(**{name: _last(run, f"fedavg_{name}") for name in names})


def _last(run: RunReader, name: str) -> float:
    column = run.rounds.get(name)
    return nan if column is None else float(column[-1])


def _named(baseline: RunReader) -> tuple[str, str]:
    name = baseline.settings.method.name
    return name, f"Compared with a run of {name} with seed {baseline.settings.seed}: {baseline.name}."


def _share(value: float, of: float) -> float:
    return 100 * value / of if of else nan


def _cards(run: RunReader, own: Figures, other: Figures, name: str, pruning_ratio: float) -> list[Card]:
    metric = run.primary
    best = run.rounds.get(f"{metric.name}/best")
    remarks = [] if best is None else [f"best {metric.in_percent(metric.best(best.astype(np.float64).tolist()))}"]
    remarks += [f"{name} {metric.in_percent(other.primary)}"] if isfinite(other.primary) else []
    shown = [Card(f"test {metric.title}", metric.in_percent(own.primary), ", ".join(remarks))]
    for field in list(SHOWN)[:-1]:
        title, text = SHOWN[field]
        value = getattr(own, field)
        share = _share(value, getattr(other, field))
        if value:
            remark = f"of {name}'s; {text(value)}" if isfinite(share) else ""
            shown.append(Card(title, percent(share) if isfinite(share) else text(value), remark))
    if isfinite(pruning_ratio):
        shown.append(Card("pruning ratio", percent(100 * pruning_ratio), "of the parameters, mean over clients"))
    return shown


def _rows(own: Figures, other: Figures, metric: PrimaryMetric) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for field, (title, text) in {"primary": (f"test {metric.title}", metric.in_percent), **SHOWN}.items():
        mine, theirs = getattr(own, field), getattr(other, field)
        if field == "energy_j" and not mine:
            rows.append((title, NOT_COUNTED, "-", "-"))
        else:
            rows.append((title, text(mine), text(theirs), percent(_share(mine, theirs))))
    return rows


def _lost(clients: ClientStatistics) -> str:
    sums = {outcome: int(counts.sum()) for outcome, counts in clients.outcomes.items()}
    total, counted = sum(sums.values()), sums.pop(outcomes.COUNTED, 0)
    lost = [f"{count:,} {outcome}" for outcome, count in sorted(sums.items(), key=lambda each: -each[1]) if count]
    if not lost:
        return f"The work of all {total:,} clients that were selected in {len(clients.round):,} rounds counted."
    return (
        f"Of {total:,} clients that were selected, the work of {counted:,} counted; the rest was lost: "
        f"{', '.join(lost)}."
    )


def _widths(run: RunReader) -> str:
    """Return the table of the global model's last scores, cut to each width by the method's own masks."""
    metric, rows = run.primary, []
    names = sorted((name for name in run.rounds if name.startswith(f"width_{metric.name}/")), reverse=True)
    for name in names:
        width = name.partition("/")[2]
        figures = (name, f"width_validation_{metric.name}/{width}", f"width_loss/{width}")
        test, validation, loss = (_last_known(run, each) for each in figures)
        scores = (metric.in_percent(each) for each in (test, validation))
        rows.append((f"{float(width):.3g}", *scores, f"{loss:.4f}"))
    if not rows:
        return ""
    headings = ("global model at width", f"test {metric.title}", f"validation {metric.title}", "test loss")
    return table(headings, rows)


def _further(run: RunReader) -> str:
    """Return the tables of the further metrics of the global model, and of those of each class."""
    names = [name.partition("/")[2] for name in run.rounds if name.startswith("test/")]
    found = {name: [_last_known(run, f"{split}/{name}") for split in ("test", "validation")] for name in names}
    metrics = {name: metric_of_any(name) for name in names if "/" not in name}
    single = [(name, *map(metric.in_percent, found[name])) for name, metric in metrics.items()]
    html = table(("metric", "test rows", "validation rows"), single) if single else ""
    classes = [name.partition("/")[2] for name in names if name.startswith("recall/")]
    if classes:
        kinds = ("recall", "precision", "f1")
        rows = [(each, *(percent(100 * found[f"{kind}/{each}"][0], 2) for kind in kinds)) for each in classes]
        html += table(("class, on test rows", *kinds), rows)
    return html


def _last_known(run: RunReader, name: str) -> float:
    column = run.rounds.get(name)
    if column is None:
        return nan
    known = column.astype(np.float64)
    known = known[~np.isnan(known)]
    return float(known[-1]) if len(known) else nan


def _target(target: Mapping[str, Any], metric: PrimaryMetric) -> tuple[str, ...]:
    shown = metric.in_percent(target[metric.name], 1)
    if target["round"] is None:
        return (shown, "never", "-", "-", "-", "-")
    return (
        shown,
        f"{target['round']:,}",
        duration(target["simulated_s"]),
        with_unit(target["bytes"], "B"),
        with_unit(target["train_flops"], "FLOP"),
        with_unit(target["energy_j"], "J") if target["energy_j"] else NOT_COUNTED,
    )
