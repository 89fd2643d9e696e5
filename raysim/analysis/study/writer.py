"""Write a comparison: its folder, a parent run in MLflow with the table, and a child run for each run."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysim.analysis.study import table
from raysim.analysis.study.one_run import Outcome, check_split
from raysim.analysis.study.plan import Comparison, Run, plan
from raysim.analysis.study.results import RUN, TRIAL, VALIDATION, CellResults
from raysim.analysis.study.tuning import Tuning
from raysim.analysis.tables.columns import BEST, FINAL, LAST_MEAN
from raysim.analysis.tables.text import to_csv, to_markdown
from raysim.config import loader
from raysim.config.metric import metric_in
from raysim.core.errors import SettingError
from raysim.core.storage import atomic
from raysim.core.storage.local import AnyPath, storage_path
from raysim.experiment.start import environment
from raysim.population import serialization
from raysim.simulation import checkpoint, records
from raysim.simulation.fedavg import why_not_compared
from raysim.tracking.mlflow_writer import MlflowWriter, resolve_uri
from raysim.tracking.run_folder import make_folder
from raysim.tracking.run_metadata import tags_of
from raysim.tracking.run_reader import digests_of_files

ON_PARENT = (
    LAST_MEAN,
    FINAL,
    BEST,
    "bytes_percent_of_fedavg",
    "flops_percent_of_fedavg",
    "simulated_s",
    "simulated_percent_of_fedavg",
)
"""Means that the parent run has as metrics, one per row."""


@dataclass(eq=False)
class ComparisonWriter:
    """Writes a comparison; nothing else writes to its folder, its MLflow runs and its cell of a results file."""

    comparison: Comparison
    folder: Path
    tracker: MlflowWriter
    figures: list[table.Figures] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    tuning: Tuning | None = None
    results: CellResults | None = None

    @property
    def title(self) -> str:
        """Methods, data set, model, rounds and seeds, in one line."""
        settings, base = self.comparison.settings, self.comparison.base
        seeds = ", ".join(str(seed) for seed in settings.seeds)
        return (
            f"{len(settings.methods)} methods on {base.data.name} with {base.model.name}, {base.rounds} rounds, "
            f"seeds {seeds}, split seed {base.split_seed}"
        )

    @property
    def rows(self) -> list[table.Row]:
        """The rows of the table so far."""
        return table.rows_of(self.comparison.settings.methods, self.figures, self.comparison.base.evaluation.targets)

    @property
    def notes(self) -> list[str]:
        """The notes below the table."""
        base = self.comparison.base
        why = why_not_compared(base.selection.rule, base.stop.given)
        further = [f"Nothing is in per cent of FedAvg: {why}."] if why else []
        further += [self.tuning.note] if self.tuning else []
        return [*table.notes_of(self.rows), *further]

    def begin(self, digests: dict[str, str]) -> None:
        """Create the parent run, and write what is about to run."""
        base, self.digests = self.comparison.base, digests
        shared = {
            name: value
            for name, value in loader.flatten(base).items()
            if name != "seed" and not name.startswith("method.")
        }
        given = {
            "comparison.methods": ", ".join(entry.title for entry in self.comparison.settings.methods),
            "comparison.seeds": ", ".join(str(seed) for seed in self.comparison.settings.seeds),
            "comparison.split_seed": str(base.split_seed),
        }
        tags = {"kind": "comparison", "data": base.data.name, "model": base.model.name} | environment()
        self.tracker.start(self.title, shared | given, tags, digests)
        path = atomic.write_text(self.folder / "comparison.yaml", loader.to_yaml(self.comparison.settings))
        self.tracker.artifact(path)

    def tune(self, found: Tuning) -> None:
        """Give each row the values of its best trial, and write all trials."""
        self.tuning = found
        self.comparison = plan(found.settings)
        self.tracker.artifact(atomic.write_text(self.folder / "tuning.csv", to_csv(found.rows)))

    def earlier_trials(self, trials: Sequence[Run]) -> Iterator[tuple[int, float]]:
        """Yield the index of each trial that is in the results file, and its score on validation rows."""
        for index, result in self.results.earlier(TRIAL, trials, self.digests) if self.results else ():
            yield index, float(result.figures[self.comparison.primary.recorded(VALIDATION)])

    def add_trial(self, trial: Run, outcome: Outcome, result: float | str) -> None:
        """Write the result of a trial: its score on validation rows, or why it failed."""
        if self.results:
            figures = {} if isinstance(result, str) else {self.comparison.primary.recorded(VALIDATION): result}
            self.results.add(TRIAL, trial, outcome.digests, figures, outcome.failure, outcome.wall_s)

    def take_earlier(self, runs: Sequence[Run]) -> list[Run]:
        """Take the figures of runs that are in the results file; return the runs that are not."""
        earlier = dict(self.results.earlier(RUN, runs, self.digests)) if self.results else {}
        self.figures += [dict(result.figures) for result in earlier.values()]
        return [run for index, run in enumerate(runs) if index not in earlier]

    def add(self, run: Run, outcome: Outcome) -> table.Figures:
        """Write the files of one run, and its child run in MLflow.

        Raises:
            RuntimeError: If it has another split than the others.
        """
        check_split(f"{run.label}, seed {run.seed}", outcome, self.digests)
        figures = table.figures_of(run, outcome)
        if self.results:  # first of all: nothing that fails later loses it
            self.results.add(RUN, run, outcome.digests, figures, outcome.failure, outcome.wall_s)
        folder = self.folder / "runs" / run.folder_name
        make_folder(folder)
        written: list[AnyPath] = [atomic.write_text(folder / "config.yaml", loader.to_yaml(run.settings))]
        if outcome.reports:
            columns = [report.clients for report in outcome.reports]
            written.append(records.write_all(columns, folder / "clients.parquet"))
            rounds = [records.round_columns(report) for report in outcome.reports]
            written.append(records.write_all(rounds, folder / "rounds.parquet"))
        if outcome.devices is not None:
            serialization.save(outcome.devices, folder / "devices.parquet")
            written.append(folder / "devices.parquet")
        if outcome.params is not None:
            served = {key: torch.from_numpy(np.array(value)) for key, value in outcome.params.items()}
            checkpoint.save_params(served, folder / "model.safetensors")
        tracker = self._child(run, outcome)
        full_model = dict(outcome.full_model)
        summary = figures | {"run_id": tracker.run_id, "split": outcome.digests, "full_model": full_model}
        summary["files_sha256"] = digests_of_files(storage_path(folder))
        written.append(atomic.write_text(folder / "summary.json", json.dumps(summary, indent=2)))
        _track(tracker, outcome, written)
        self.figures.append(figures)
        return figures

    def _child(self, run: Run, outcome: Outcome) -> MlflowWriter:
        settings = run.settings
        tracker = MlflowWriter(self.tracker.uri, settings.experiment, parent=self.tracker.run_id)
        tags = tags_of(settings) | {"label": run.label}
        name, params = f"{run.label} seed {run.seed}", loader.flatten(settings)
        tracker.start(name, params, tags | environment(), outcome.digests, outcome.started_ms)
        return tracker

    @property
    def content(self) -> dict[str, Any]:
        """The whole comparison, ready for JSON."""
        return {
            "title": self.title,
            "notes": self.notes,
            "rows": self.rows,
            "tuning": self.tuning.rows if self.tuning else [],
            "runs": self.figures,
            "split": self.digests,
            "environment": environment(),
            "run_id": self.tracker.run_id,
            "output_dir": str(self.folder),
            "tracking_uri": self.tracker.uri,
            "experiment_id": self.tracker.experiment_id,
        }

    def end(self, status: str) -> None:
        """Write the table, log it and the means to the parent run, and end that; as failed if that fails."""
        try:
            self._write_table()
        except BaseException:
            status = "FAILED"
            raise
        finally:
            if self.tracker.run_id:
                self.tracker.end(status)

    def _write_table(self) -> None:
        texts = {
            "comparison.md": to_markdown(table.columns_of(self.rows), self.title, self.notes),
            "comparison.csv": table.to_csv(self.rows),
            "comparison.json": json.dumps(self.content, indent=2),
        }
        written = [atomic.write_text(self.folder / name, text) for name, text in texts.items()]
        if not self.tracker.run_id:
            return
        for path in written:
            self.tracker.artifact(path)
        self.tracker.measure(means(self.rows))


def _track(tracker: MlflowWriter, outcome: Outcome, written: Sequence[AnyPath]) -> None:
    tracker.track(outcome.reports, outcome.unlogged)
    for path in written:
        tracker.artifact(path)
    if outcome.failure:
        tracker.note("failure", outcome.failure)
    ended_ms = outcome.started_ms + int(1000 * outcome.wall_s)
    tracker.end("FAILED" if outcome.failure else "FINISHED", ended_ms)


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means of all rows under names that MLflow allows, as `accuracy_last10/ca-hfp-plus`."""
    return {
        f"{name}/{re.sub(r'[^A-Za-z0-9._-]', '_', row['label'].replace('+', '-plus'))}": row[name]["mean"]
        for row in rows
        for name in map(metric_in(row).recorded, ON_PARENT)
        if row[name]["mean"] is not None
    }


def open_writer(comparison: Comparison, folder: Path, results: CellResults | None = None) -> ComparisonWriter:
    """Make the folder of a comparison and open the MLflow store.

    Args:
        comparison: The comparison.
        folder: Its folder.
        results: Earlier results, whose runs are not repeated; new ones are added. None: all runs are executed.

    Raises:
        SettingError: If one of them cannot be used.
    """
    uri = resolve_uri(comparison.base.tracking.uri)
    if (folder / "comparison.yaml").exists():
        raise SettingError(f"--output={str(folder)!r} holds a comparison already; give a folder without one")
    make_folder(folder)
    tracker = MlflowWriter(uri, comparison.base.experiment, beside=str(folder.parent))
    return ComparisonWriter(comparison, folder, tracker, results=results)
