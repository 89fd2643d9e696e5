"""Where the records of a run lie: in its folder, whether it has finished or not, or among its artifacts in MLflow."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raysim.core.errors import SettingError
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.population import serialization
from raysim.population.profiles import Devices
from raysim.simulation import records
from raysim.tracking import run_reader

NEEDED = ("config.yaml", "rounds.parquet", "clients.parquet")
WHERE_THERE = (
    "run.json", "summary.json", "plan.json", "devices.parquet", "channels.parquet", "partition.parquet",
    "partition.png",
)  # fmt: skip
"""Files without which a report lacks a part, and says so."""
COLUMNS = {
    "rounds.parquet": ("round", "round_s", "simulated_s", "bytes", "energy_j", "accuracy"),
    "clients.parquet": (
        "round", "client", "tier", "fate", "start_s", "lasts_s", "pruning_ratio", "download_s", "compute_s",
        "upload_s", "total_s",
    ),
    "channels.parquet": ("round", "unit", "clients", "examples"),
    "partition.parquet": ("client", "label", "rows"),
}  # fmt: skip
"""What tables have to tell, where they are there."""


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What is known of a run.

    Attributes:
        name: Folder or run id.
        files: A folder on this machine with its records; tables of clients and channels are read from there.
        settings: The experiment, as nested names and values.
        yaml: The same as it was written down.
        rounds: One row per round.
        summary: What it reached and spent; empty where it has not finished.
        noted: What run.json tells: which run it is, versions, digests.
        groups: Names and sizes of the channel groups, in the order of units; none where that is not known.
        devices: Devices of all clients, where they are known.
    """

    name: str
    files: Path
    settings: Mapping[str, Any]
    yaml: str
    rounds: Columns
    summary: Mapping[str, Any]
    noted: Mapping[str, Any]
    groups: Mapping[str, int] | None
    devices: Devices | None

    @property
    def num_clients(self) -> int:
        """Clients of the population."""
        return int(self.settings["population"]["clients"])

    def has(self, file: str) -> bool:
        """Whether a file was written."""
        return (self.files / file).is_file()


@contextmanager
def of_run(run: str, tracking_uri: str | None = None) -> Iterator[Recorded]:
    """Give what is known of a run, its files being there for as long as the context lasts.

    Args:
        run: Its output folder, or its id in MLflow.
        tracking_uri: The MLflow store; none = MLFLOW_TRACKING_URI if set, else the default one.

    Raises:
        SettingError: If there is no such run, it has no round, or its records cannot be read.
    """
    folder = run_reader.folder_of(run)
    if folder is not None:
        with of_folder(folder, run) as recorded:
            yield recorded
        return
    from raysim.tracking import mlflow_writer  # MLflow takes seconds to import

    uri = mlflow_writer.resolve_uri(tracking_uri)
    with run_reader.artifacts(run, uri, NEEDED[:1], (*NEEDED[1:], *WHERE_THERE)) as copied:
        kept = None if (copied / "summary.json").is_file() else _kept(copied, run)
        if kept is None:
            yield _read(copied, run)
            return
        with of_folder(kept, run) as recorded:
            yield recorded


def _kept(copied: Path, run_id: str) -> StoragePath | None:
    """Return the folder of a run that is not over, which knows more of it than MLflow; none = it tells no folder.

    Raises:
        SettingError: If the folder cannot be reached, and MLflow has no round.
    """
    with run_reader.reading(run_id):
        folder = run_reader.json_of(storage_path(copied / "run.json")).get("output_dir")
    if folder is None:
        return None
    if run_reader.holds(storage_path(folder), run_id):
        return storage_path(folder)
    if not (copied / "rounds.parquet").is_file():
        raise SettingError(f"RUN={run_id!r} has not finished, and {folder}, where its rounds are, cannot be reached")
    return None


@contextmanager
def of_folder(folder: StoragePath, name: str) -> Iterator[Recorded]:
    """Give what is known of the run in a folder; of one that has not finished, the rounds that are written down.

    Raises:
        SettingError: If it has no round, or its records cannot be read.
    """
    with tempfile.TemporaryDirectory() as copied:
        files = Path(copied)
        with run_reader.reading(folder):
            is_over = (folder / "summary.json").is_file()
            if not is_over:
                _merge(folder, files, name)
            for file in (*NEEDED, *WHERE_THERE):
                if (folder / file).is_file() and not (files / file).exists():
                    _bring(folder / file, files / file)
        yield _read(files, name)


def _merge(folder: StoragePath, files: Path, name: str) -> None:
    """Merge the rounds so far; those that only some tables tell of are left out when they are read."""
    for table in records.TABLES:
        if (folder / table).children():
            records.merge_parts(folder / table, files / f"{table}.parquet", together=table == "rounds")
        elif table != "channels" and not (folder / f"{table}.parquet").is_file():
            raise SettingError(f"RUN={name!r} has no round yet: nothing can be told of it")


def _bring(place: StoragePath, path: Path) -> None:
    if place.path is not None:
        path.symlink_to(place.path)
    else:
        path.write_bytes(place.read())


def _read(files: Path, name: str) -> Recorded:
    missing = [file for file in NEEDED if not (files / file).is_file()]
    if missing:
        raise SettingError(f"RUN={name!r} cannot be shown: {missing[0]} is missing; a run of this version writes it")
    settings = run_reader.settings_of(files / "config.yaml", name).model_dump()
    with run_reader.reading(name):
        for table, needed in COLUMNS.items():
            if (files / table).is_file():
                run_reader.check_told(table, pq.read_schema(files / table).names, needed)
        rounds = records.read(files / "rounds.parquet")
        places_of = (storage_path(files / file) for file in ("summary.json", "run.json", "plan.json"))
        summary, noted, plan = map(run_reader.json_of, places_of)
        if plan:
            run_reader.check_told("plan.json", plan, ("groups",))
        devices = files / "devices.parquet"
        known = serialization.load(devices) if devices.is_file() else None
    if not len(rounds["round"]):
        raise SettingError(f"RUN={name!r} has no round yet: nothing can be told of it")
    groups = {group["name"]: int(group["size"]) for group in plan["groups"]} if plan else None
    text = (files / "config.yaml").read_text(encoding="utf-8")
    return Recorded(name, files, settings, text, rounds, summary, noted, groups, known)
