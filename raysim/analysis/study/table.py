"""Compute the table of a study: means and deviations over seeds, compared with dense clients.

Unlike the table of `raysim compare`, which holds any runs against a baseline row from their recorded rounds, this one
shows what the runs counted themselves: bytes and FLOPs in per cent of dense clients in the same cohorts.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raysim.analysis.study.one_run import Outcome
from raysim.analysis.study.plan import MethodEntry, Run
from raysim.analysis.tables import text
from raysim.analysis.tables.columns import ACCURACIES, Column, accuracy
from raysim.analysis.tables.means import LAST, spread
from raysim.simulation.state import summary_of

Figures = dict[str, Any]
"""Costs and results of one run, by name."""
Row = dict[str, Any]
"""Costs and results of a method: for each figure the mean and sample standard deviation over seeds."""

AVERAGED = (
    "accuracy_last10", "accuracy", "best_accuracy", "pruning_ratio_mean", "total_bytes", "bytes_percent_of_fedavg",
    "train_flops", "flops_percent_of_fedavg", "simulated_s", "simulated_percent_of_fedavg", "preparation_s",
    "preparation_bytes", "preparation_flops", "wall_s",
)  # fmt: skip
"""Figures of which a row has mean and deviation."""
NOTES = (
    f"Test accuracy in percent, mean \u00b1 sample standard deviation over seeds: mean of the last {LAST} "
    "evaluations, the last one, the best. Bytes and FLOPs: percent of what dense clients of the same cohorts would "
    "have spent. Simulated seconds: mean over seeds, and percent of the row of fedavg. Preparation before round 1 is "
    "included."
)


def figures_of(run: Run, outcome: Outcome) -> Figures:
    """Return what one run reached and spent up to its last round."""
    figures: Figures = {
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
    totals, last = outcome.reports[-1].totals, outcome.accuracies[-LAST:]
    return figures | {
        "accuracy": totals.accuracy,
        "best_accuracy": totals.best_accuracy,
        "accuracy_last10": statistics.fmean(last) if last else None,
        **summary_of(totals),
        "total_bytes": totals.down_bytes + totals.up_bytes,
        **{f"preparation_{what}": getattr(totals, f"preparation_{what}") for what in ("s", "bytes", "flops")},
    }


def rows_of(entries: Sequence[MethodEntry], runs: Sequence[Figures]) -> list[Row]:
    """Return one row per method, in the order of the file; only runs that finished count.

    Args:
        entries: The entries of the file.
        runs: Costs and results of each run, failed ones included.
    """
    finished = sorted((run for run in runs if not run["failure"]), key=lambda run: int(run["seed"]))
    dense = {run["seed"]: run["simulated_s"] for run in finished if run["label"] == _reference(entries)}
    rows = []
    for entry in entries:
        own = [_against(run, dense) for run in finished if run["label"] == entry.title]
        failed = {run["seed"]: run["failure"] for run in runs if run["label"] == entry.title and run["failure"]}
        row: Row = {
            "label": entry.title,
            "method": entry.name,
            "set": dict(entry.set),
            "seeds": [run["seed"] for run in own],
            "failed": failed,
        }
        rows.append(row | {name: spread([run[name] for run in own if run[name] is not None]) for name in AVERAGED})
    return rows


def _reference(entries: Sequence[MethodEntry]) -> str | None:
    return next((entry.title for entry in entries if entry.name == "fedavg"), None)


def _against(run: Figures, dense: Mapping[int, float]) -> Figures:
    known = run["seed"] in dense
    return run | {"simulated_percent_of_fedavg": 100 * run["simulated_s"] / dense[run["seed"]] if known else None}


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
        *(Column("accuracy %", lower, [accuracy(row[name]) for row in rows]) for name, lower in ACCURACIES.items()),
        *(Column(upper, lower, [_mean(row[name]) for row in rows]) for upper, lower, name in means),
        Column("", "seeds", [_seeds(row) for row in rows]),
        Column("own", "settings", [_settings(row) for row in rows], is_text=True),
    ]


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
    return [NOTES, *(f"{label}, seed {seed}: {failure}" for label, seed, failure in failed)]


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table as CSV with unrounded numbers, two columns for each figure."""
    lines = []
    for row in rows:
        counts = {"seeds": len(row["seeds"]), "failed": len(row["failed"])}
        values = {f"{name}_{part}": row[name][part] for name in AVERAGED for part in ("mean", "std")}
        lines.append({"label": row["label"], "method": row["method"], **counts, **values})
    return text.to_csv(lines)
