"""What is recorded of a run that is compared: its settings, its rounds, and how it ended."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysim.config.experiment import ExperimentSettings
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.simulation import records
from raysim.tracking import run_reader

STOPPED_EARLY = "stopped early"
"""How a trial of a sweep ended that was given up for better ones."""
COLUMNS = ("round", "accuracy", "simulated_s", "bytes", "energy_j")
"""What a table of rounds has to tell."""


@dataclass(frozen=True, slots=True, eq=False)
class RunRecord:
    """A run as it was written down.

    Attributes:
        name: What the user calls it: folder, or id in MLflow.
        run_id: Its id in MLflow, if it is known.
        settings: The experiment.
        state: Empty if it has ended as it should, else how it stands: `failed`, `stopped`, `running`, `stopped early`
            or `unfinished`.
        digests: Hashes of its `data` and `partition`, as far as they are known.
        rounds: What was recorded of its rounds: a row each; empty if there is none.
        label: What its comparison calls the row it belongs to, if it is of one.
    """

    name: str
    run_id: str
    settings: ExperimentSettings
    state: str
    digests: Mapping[str, str]
    rounds: Columns
    label: str | None = None

    @property
    def num_rounds(self) -> int:
        """Rounds that were recorded."""
        return len(self.rounds["round"]) if self.rounds else 0

    @property
    def standing(self) -> str:
        """How it stands, in words; empty if it has ended as it should."""
        return f"{self.state} after round {self.num_rounds} of {self.settings.rounds}" if self.state else ""


def of_folder(folder: StoragePath) -> RunRecord:
    """Read a run from its folder, whether it has ended or not.

    Raises:
        SettingError: If it cannot be read.
    """
    name = str(folder)
    with run_reader.reading(folder):
        with (folder / "config.yaml").fetched() as path:
            settings = run_reader.settings_of(path, name)
        noted, summary = (run_reader.json_of(folder / file) for file in ("run.json", "summary.json"))
        rounds = _rounds_of(folder, is_over=bool(summary))
    run_id = str(summary.get("run_id") or noted.get("run_id") or "")
    state, digests = _state_of(summary, noted), run_reader.digests_in(noted, summary)
    return RunRecord(name, run_id, settings, state, digests, rounds, summary.get("label"))


def _state_of(summary: Mapping[str, Any], noted: Mapping[str, Any]) -> str:
    if not summary:
        return str(noted.get("state", "unfinished"))
    return "failed" if summary.get("failure") else str(summary.get("state", ""))


def _rounds_of(folder: StoragePath, is_over: bool) -> Columns:
    """Return the rounds of a run; where it is not over those of its parts, since the table may be of before."""
    table, parts = folder / "rounds.parquet", folder / "rounds"
    has_parts = any(part.name.endswith(".parquet") for part in parts.children())
    if table.is_file() and (is_over or not has_parts):
        return _read(table)
    if not has_parts:
        return {}
    with tempfile.TemporaryDirectory() as merged:
        return _read(records.merge_parts(parts, Path(merged) / "rounds.parquet", together=True))


def _read(table: StoragePath) -> Columns:
    rounds = records.read(table)
    run_reader.check_told(table.name, rounds, COLUMNS)
    return rounds


def of_artifacts(copied: Path, name: str, state: str, tags: Mapping[str, str]) -> RunRecord:
    """Read a run from copies of its artifacts in MLflow: `config.yaml`, and those of its records that are there.

    What its summary tells goes before the state: interrupted after its last round, a run has one and is whole.
    """
    table = storage_path(copied / "rounds.parquet")
    with run_reader.reading(name):
        summary = run_reader.json_of(storage_path(copied / "summary.json"))
        rounds = _read(table) if table.is_file() else {}
        settings = run_reader.settings_of(copied / "config.yaml", name)
    state = _state_of(summary, {}) if summary else state
    return RunRecord(name, name, settings, state, run_reader.digests_in(tags, {}), rounds, tags.get("label"))


JOULES = "energy/total_j"
IN_MLFLOW = {
    "clock/simulated_s": "simulated_s", "traffic/total_bytes": "bytes", JOULES: "energy_j",
    "accuracy/global": "accuracy", "pruning_ratio/mean": "pruning_ratio/mean", "clients/counted": "clients/counted",
}  # fmt: skip
"""Metrics that tell what a comparison asks, where a run's table of rounds is not to be had, with their columns."""


def rounds_from(histories: Mapping[str, Mapping[int, float]]) -> Columns:
    """Return rounds from metrics by step, as far as they tell."""
    steps = sorted(histories["clock/simulated_s"])
    if not steps:
        return {}
    columns: Columns = {"round": np.array(steps)}
    for key, column in IN_MLFLOW.items():
        missing = 0.0 if key == JOULES else np.nan  # of joules nothing is told before any have been spent
        columns[column] = np.array([histories[key].get(step, missing) for step in steps])
    return columns
