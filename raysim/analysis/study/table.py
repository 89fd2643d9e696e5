"""The table of a comparison that was played: means and spreads over seeds, held against dense clients."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raysim.analysis.comparison.reached import spread
from raysim.analysis.comparison.views import Column, accuracy
from raysim.analysis.study import text_tables
from raysim.analysis.study.one_run import LAST, Outcome
from raysim.analysis.study.plan import MethodEntry, Run
from raysim.simulation.state import summary_of

Figures = dict[str, Any]
"""What one run reached and spent, by name."""
Row = dict[str, Any]
"""What a method reached and spent: for each figure its mean and sample standard deviation over the seeds."""

AVERAGED = (
    "accuracy_last10", "accuracy", "best_accuracy", "pruning_ratio_mean", "total_bytes", "bytes_percent_of_fedavg",
    "train_flops", "flops_percent_of_fedavg", "simulated_s", "simulated_percent_of_fedavg", "preparation_s",
    "preparation_bytes", "preparation_flops", "wall_s",
)  # fmt: skip
"""Figures a row has the mean and the spread of."""
NOTES = (
    f"Test accuracy in percent, mean \u00b1 sample standard deviation over seeds: mean of the last {LAST} "
    "evaluations, the last one, the best. Bytes and FLOPs: percent of what dense clients of the same cohorts would "
    "have spent. "
    "Simulated seconds: mean over seeds, and percent of the row of fedavg. Preparation before round 1 is counted in."
)


def figures_of(run: Run, outcome: Outcome) -> Figures:
    """Return what one run reached and spent up to its last round."""
    figures: Figures = {
        "label": run.label, "method": run.settings.method.name, "seed": run.seed, "rounds": len(outcome.reports),
        "failure": outcome.failure, "wall_s": outcome.wall_s, "params_sha256": outcome.params_sha256,
    }  # fmt: skip
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
        entries: The rows asked for.
        runs: What each run reached and spent, failed ones included.
    """
    finished = sorted((run for run in runs if not run["failure"]), key=lambda run: int(run["seed"]))
    dense = {run["seed"]: run["simulated_s"] for run in finished if run["label"] == _reference(entries)}
    rows = []
    for entry in entries:
        own = [_against(run, dense) for run in finished if run["label"] == entry.title]
        failed = {run["seed"]: run["failure"] for run in runs if run["label"] == entry.title and run["failure"]}
        rows.append({
            "label": entry.title, "method": entry.name, "set": dict(entry.set),
            "seeds": [run["seed"] for run in own], "failed": failed,
            **{name: spread([run[name] for run in own if run[name] is not None]) for name in AVERAGED},
        })  # fmt: skip
    return rows


def _reference(entries: Sequence[MethodEntry]) -> str | None:
    return next((entry.title for entry in entries if entry.name == "fedavg"), None)


def _against(run: Figures, dense: Mapping[int, float]) -> Figures:
    known = run["seed"] in dense
    return run | {"simulated_percent_of_fedavg": 100 * run["simulated_s"] / dense[run["seed"]] if known else None}


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Return the table as text."""
    told = (
        ("accuracy %", f"last {LAST}", "accuracy_last10", accuracy), ("accuracy %", "final", "accuracy", accuracy),
        ("accuracy %", "best", "best_accuracy", accuracy), ("bytes", "% FedAvg", "bytes_percent_of_fedavg", _mean),
        ("FLOPs", "% FedAvg", "flops_percent_of_fedavg", _mean), ("simulated", "seconds", "simulated_s", _mean),
        ("simulated", "% FedAvg", "simulated_percent_of_fedavg", _mean),
    )  # fmt: skip
    return [
        Column("", "row", [row["label"] for row in rows]),
        *(Column(upper, lower, [text(row[name]) for row in rows]) for upper, lower, name, text in told),
        Column("", "seeds", [_seeds(row) for row in rows]),
        Column("own", "settings", [_settings(row) for row in rows]),
    ]


def _mean(value: Mapping[str, float | None]) -> str:
    return "-" if value["mean"] is None else f"{value['mean']:.1f}"


def _seeds(row: Row) -> str:
    total = len(row["seeds"]) + len(row["failed"])
    return f"{len(row['seeds'])} of {total}" if row["failed"] else str(total)


def _settings(row: Row) -> str:
    return ", ".join(f"{name.partition('.')[2]} {value}" for name, value in row["set"].items())


def notes_of(rows: Sequence[Row]) -> list[str]:
    """Return what stands below the table: how it is read, and what failed."""
    failed = [(row["label"], seed, failure) for row in rows for seed, failure in row["failed"].items()]
    return [NOTES, *(f"{label}, seed {seed}: {failure}" for label, seed, failure in failed)]


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table as CSV with unrounded numbers, two columns for each figure."""
    return text_tables.to_csv([
        {
            "label": row["label"], "method": row["method"], "seeds": len(row["seeds"]), "failed": len(row["failed"]),
            **{f"{name}_{part}": row[name][part] for name in AVERAGED for part in ("mean", "std")},
        }
        for row in rows
    ])  # fmt: skip
