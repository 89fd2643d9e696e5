"""Compute the table of a study: means and deviations over seeds, compared with dense clients.

Unlike the table of `raysim compare`, which holds any runs against a baseline row from their recorded rounds, this one
shows what the runs counted themselves: bytes and FLOPs in per cent of dense clients in the same cohorts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from raysim.analysis.study.one_run import Outcome
from raysim.analysis.study.plan import Run
from raysim.analysis.study.settings import MethodEntry
from raysim.analysis.tables import text
from raysim.analysis.tables.columns import (
    BEST,
    DIFFERENCES,
    FINAL,
    LAST_MEAN,
    SEEDS,
    UNITS,
    Column,
    leading,
    reached_columns,
    score_columns,
)
from raysim.analysis.tables.means import LAST, LEVEL, against, default_target, last_mean, paired, spread
from raysim.config.metric import ACCURACY, PrimaryMetric, metric_in
from raysim.simulation.state import RoundReport, summary_of

Figures = dict[str, Any]
"""Costs and results of one run, by name."""
Row = dict[str, Any]
"""Costs and results of a method: for each figure the mean and sample standard deviation over seeds."""

AVERAGED = (
    LAST_MEAN, FINAL, BEST, "pruning_ratio_mean", "total_bytes", "bytes_percent_of_fedavg", "train_flops",
    "flops_percent_of_fedavg", "simulated_s", "simulated_percent_of_fedavg", "preparation_s",
    "preparation_bytes", "preparation_flops", "wall_s",
)  # fmt: skip
"""Figures of which a row has mean and deviation; scores are named after the metric."""
NOTES = (
    f"Test {{metric}}, means over seeds: of the last {LAST} evaluations where there are at least "
    f"{2 * LAST}, of the last one, of the best; {SEEDS}. {{points}} to the baseline (the first row of fedavg, else "
    f"the first): mean difference over the seeds of both, with its {100 * LEVEL:.0f} % t-interval. The cost of "
    "a target: mean of the runs that reached it, so many of all; in brackets per cent of the baseline's, over the "
    "seeds of both. Bytes, FLOPs and simulated seconds: means over seeds, in per cent of what FedAvg would have "
    "spent in the same rounds under the same clock. Preparation before round 1 is included."
)


def how_to_read(metric: PrimaryMetric = ACCURACY) -> str:
    """Return how the table is read."""
    unit = " in per cent" if metric.is_share else ""
    way = "" if metric.direction == "up" else " (lower is better)"
    points = "Points" if metric.is_share else "Difference"
    return NOTES.format(metric=f"{metric.title}{unit}{way}", points=points)


def figures_of(run: Run, outcome: Outcome) -> Figures:
    """Return what one run reached and spent up to its last round."""
    metric = run.settings.task.primary_metric
    figures: Figures = {
        **metric.entries,
        "label": run.label,
        "method": run.settings.method.name,
        "seed": run.seed,
        "rounds": len(outcome.reports),
        "failure": outcome.failure,
        "wall_s": outcome.wall_s,
        "params_sha256": outcome.params_sha256,
    }
    if not outcome.reports:
        return figures
    totals = outcome.reports[-1].totals
    return figures | {
        **metric.as_recorded(
            {FINAL: totals.primary, BEST: totals.best_primary, LAST_MEAN: last_mean(outcome.scores)}
        ),
        "num_classes": outcome.num_classes,
        "evaluations": metric.as_recorded(_evaluations(outcome.reports)),
        **summary_of(totals),
        "total_bytes": totals.down_bytes + totals.up_bytes,
        **{f"preparation_{what}": getattr(totals, f"preparation_{what}") for what in ("s", "bytes", "flops")},
    }


def _evaluations(reports: Sequence[RoundReport]) -> dict[str, list[float]]:
    """Return the score at each evaluation, and what had been spent by then."""
    scored = [report for report in reports if report.score is not None]
    return {
        FINAL: [report.score.primary for report in scored if report.score is not None],
        "rounds": [float(report.round) for report in scored],
        "megabytes": [(report.totals.down_bytes + report.totals.up_bytes) / 1e6 for report in scored],
        "simulated_s": [report.totals.simulated_s for report in scored],
        "energy_j": [report.totals.energy_j for report in scored],
    }


def targets_of(entries: Sequence[MethodEntry], runs: Sequence[Figures], given: Sequence[float] = ()) -> list[float]:
    """Return the scores whose costs are shown: the given ones, else one that the baseline has almost reached.

    Args:
        entries: The entries of the file.
        runs: Costs and results of each run.
        given: The `evaluation.targets` of all runs.
    """
    if given:
        return sorted(set(given))
    leads, own = leading_of(runs), [run for run in _scored(runs) if run["label"] == baseline_of(entries).title]
    num_classes = own[0]["num_classes"] if own else None
    target = default_target([run[leads] for run in own], num_classes, _metric_of(runs))
    return [] if target is None else [target]


def baseline_of(entries: Sequence[MethodEntry]) -> MethodEntry:
    """Return the row that the others are compared with: the first of fedavg, else the first."""
    return next((entry for entry in entries if entry.name == "fedavg"), entries[0])


def leading_of(runs: Sequence[Figures]) -> str:
    """Return the score by which rows are compared."""
    metric = _metric_of(runs)
    return leading([run[metric.recorded(LAST_MEAN)] is not None for run in _scored(runs)], metric)


def _metric_of(runs: Sequence[Figures]) -> PrimaryMetric:
    """Return the metric by which runs are scored; all of them by the same."""
    return metric_in(runs[0]) if runs else ACCURACY


def _scored(runs: Sequence[Figures]) -> list[Figures]:
    return [run for run in runs if not run["failure"] and run[metric_in(run).name] is not None]


def rows_of(entries: Sequence[MethodEntry], runs: Sequence[Figures], given: Sequence[float] = ()) -> list[Row]:
    """Return one row per method, in the order of the file; only runs that finished count.

    Args:
        entries: The entries of the file.
        runs: Costs and results of each run, failed ones included.
        given: The `evaluation.targets` of all runs.
    """
    finished = sorted((run for run in runs if not run["failure"]), key=lambda run: int(run["seed"]))
    leads, targets, rows = leading_of(finished), targets_of(entries, finished, given), []
    base = [run for run in finished if run["label"] == baseline_of(entries).title]
    metric, averaged = _metric_of(runs), averaged_of(_metric_of(runs))
    for entry in entries:
        own = [run for run in finished if run["label"] == entry.title]
        failed = {run["seed"]: run["failure"] for run in runs if run["label"] == entry.title and run["failure"]}
        row: Row = {
            **metric.entries,
            "label": entry.title,
            "method": entry.name,
            "set": dict(entry.set),
            "seeds": [run["seed"] for run in own],
            "failed": failed,
        }
        row |= {name: spread([run[name] for run in own if run[name] is not None]) for name in averaged}
        if leads != metric.recorded(LAST_MEAN):
            row[metric.recorded(LAST_MEAN)] = spread([])
        row |= {"leading": leads, **paired(_by_seed(own, leads), _by_seed(base, leads), metric.scale)}
        rows.append(row | {"targets": [_target(target, own, base, metric) for target in targets]})
    return rows


def averaged_of(metric: PrimaryMetric) -> list[str]:
    """Return the figures of which a row has mean and deviation."""
    return [metric.recorded(name) for name in AVERAGED]


def _by_seed(runs: Sequence[Figures], name: str) -> dict[int, float]:
    return {run["seed"]: run[name] for run in runs if run[name] is not None}


def _target(target: float, own: Sequence[Figures], base: Sequence[Figures], metric: PrimaryMetric) -> dict[str, Any]:
    """Return what a target cost the runs of a row that reached it, against the baseline's."""
    mine, theirs = (_costs_at(target, runs, metric) for runs in (own, base))
    found: dict[str, Any] = {metric.name: target, "reached": len(mine), "of": len(own)}
    for name in ("rounds", *UNITS):
        values, others = ({seed: costs[name] for seed, costs in each.items()} for each in (mine, theirs))
        is_counted = name == "rounds" or any(run["energy_j"] for run in own) or name != "energy_j"
        found[name] = against(values if is_counted else {}, others)
    return found


def _costs_at(target: float, runs: Sequence[Figures], metric: PrimaryMetric) -> dict[int, dict[str, float]]:
    """Return the costs of a target, by seed of the runs that reached it."""
    found = {}
    for run in runs:
        curve = run["evaluations"]
        scores = enumerate(curve[metric.name])
        index = next((index for index, score in scores if metric.reaches(score, target)), None)
        if index is not None:
            found[run["seed"]] = {name: curve[name][index] for name in ("rounds", *UNITS)}
    return found


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of the table, as text."""
    means = (
        ("bytes", "% FedAvg", "bytes_percent_of_fedavg"),
        ("FLOPs", "% FedAvg", "flops_percent_of_fedavg"),
        ("simulated", "seconds", "simulated_s"),
        ("simulated", "% FedAvg", "simulated_percent_of_fedavg"),
    )
    return [
        Column("", "row", [row["label"] for row in rows], is_text=True),
        *(column for column in score_columns(rows) if column.upper in DIFFERENCES or set(column.cells) != {"-"}),
        *_reached(rows),
        *(
            Column(upper, lower, [_mean(row[name]) for row in rows])
            for upper, lower, name in means
            if any(row[name]["mean"] is not None for row in rows)
        ),
        Column("", "seeds", [_seeds(row) for row in rows]),
        Column("own", "settings", [_settings(row) for row in rows], is_text=True),
    ]


def _reached(rows: Sequence[Row]) -> list[Column]:
    """Return the columns with what each target cost; costs that no row has are left out."""
    found = []
    for index in range(len(rows[0]["targets"])):
        costs = [row["targets"][index] for row in rows]
        known = {name: unit for name, unit in UNITS.items() if any(each[name]["mean"] is not None for each in costs)}
        found += reached_columns(costs, known, metric=metric_in(rows[0]))
    return found


def _mean(value: Mapping[str, float | None]) -> str:
    return "-" if value["mean"] is None else f"{value['mean']:.1f}"


def _seeds(row: Row) -> str:
    total = len(row["seeds"]) + len(row["failed"])
    return f"{len(row['seeds'])} of {total}" if row["failed"] else str(total)


def _settings(row: Row) -> str:
    return ", ".join(f"{name.partition('.')[2]} {value}" for name, value in row["set"].items())


def notes_of(rows: Sequence[Row]) -> list[str]:
    """Return the notes below the table: how it is read, and which runs failed."""
    failed = [(row["label"], seed, failure) for row in rows for seed, failure in row["failed"].items()]
    return [how_to_read(metric_in(rows[0])), *(f"{label}, seed {seed}: {failure}" for label, seed, failure in failed)]


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table as CSV with unrounded numbers, two columns for each figure."""
    lines, metric = [], metric_in(rows[0])
    for row in rows:
        counts = {"seeds": len(row["seeds"]), "failed": len(row["failed"])}
        values = {f"{name}_{part}": row[name][part] for name in averaged_of(metric) for part in ("mean", "std")}
        paired = {name: row[name] for name in ("points", "points_low", "points_high")}
        for target in row["targets"]:
            prefix = f"to_{target[metric.name]:g}"
            values |= {f"{prefix}_reached": target["reached"]}
            values |= {f"{prefix}_{name}": target[name]["mean"] for name in ("rounds", *UNITS)}
        lines.append({"label": row["label"], "method": row["method"], **counts, **paired, **values})
    return text.to_csv(lines)
