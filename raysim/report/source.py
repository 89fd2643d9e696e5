"""Where the records of a run lie: in its folder, whether it has finished or not, or among its artifacts in MLflow."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysim import config_file, device_storage, records, runs
from raysim.errors import SettingError, reason_of
from raysim.place import Place
from raysim.types import Columns, Devices

NEEDED = ("config.yaml", "rounds.parquet", "clients.parquet")
WHERE_THERE = (
    "run.json", "summary.json", "plan.json", "devices.parquet", "channels.parquet", "partition.parquet",
    "partition.png",
)  # fmt: skip
"""Files without which a report lacks a part, and says so."""


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What is known of a run.

    Attributes:
        name: Folder or run id.
        files: A folder on this machine with its records; tables of clients and channels are read from there.
        settings: The experiment, as it was written down.
        yaml: The same as text.
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
    folder = runs.folder_of(run)
    if folder is not None:
        with of_folder(folder, run) as recorded:
            yield recorded
        return
    from raysim import tracking  # MLflow takes seconds to import

    with runs.artifacts(run, tracking.resolve_uri(tracking_uri), NEEDED, WHERE_THERE) as copied:
        yield _read(copied, run)


@contextmanager
def of_folder(folder: Place, name: str) -> Iterator[Recorded]:
    """Give what is known of the run in a folder; of one that has not finished, the rounds that are written down.

    Raises:
        SettingError: If it has no round, or its records cannot be read.
    """
    with tempfile.TemporaryDirectory() as copied:
        files = Path(copied)
        with runs.reading(folder):
            is_over = (folder / "summary.json").is_file()
            if not is_over:
                _merge(folder, files, name)
            for file in (*NEEDED, *WHERE_THERE):
                if (folder / file).is_file() and not (files / file).exists():
                    _bring(folder / file, files / file)
        yield _read(files, name)


def _merge(folder: Place, files: Path, name: str) -> None:
    """Merge the rounds so far; those that only some tables tell of are left out when they are read."""
    for table in records.TABLES:
        if (folder / table).children():
            records.merge_parts(folder / table, files / f"{table}.parquet", together=table == "rounds")
        elif table != "channels" and not (folder / f"{table}.parquet").is_file():
            raise SettingError(f"RUN={name!r} has no round yet: nothing can be told of it")


def _bring(place: Place, path: Path) -> None:
    if place.path is not None:
        path.symlink_to(place.path)
    else:
        path.write_bytes(place.read())


def _read(files: Path, name: str) -> Recorded:
    missing = [file for file in NEEDED if not (files / file).is_file()]
    if missing:
        raise SettingError(f"RUN={name!r} cannot be shown: {missing[0]} is missing; a run of this version writes it")
    try:
        rounds = records.read(files / "rounds.parquet")
        summary, noted, plan = (_json_of(files / file) for file in ("summary.json", "run.json", "plan.json"))
        devices = files / "devices.parquet"
        known = device_storage.load(devices) if devices.is_file() else None
    except (ValueError, OSError, pa.ArrowException) as error:
        raise SettingError(f"RUN={name!r} cannot be read: {reason_of(error)}") from None
    if not len(rounds["round"]):
        raise SettingError(f"RUN={name!r} has no round yet: nothing can be told of it")
    groups = {group["name"]: int(group["size"]) for group in plan["groups"]} if plan else None
    text = (files / "config.yaml").read_text(encoding="utf-8")
    settings = config_file.read_yaml(files / "config.yaml", "RUN")
    return Recorded(name, files, settings, text, rounds, summary, noted, groups, known)


def _json_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
