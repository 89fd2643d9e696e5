"""Check the records of the rounds before a resume: what is lost is found before anything is trained."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raysim.config.metric import ACCURACY, FIELD, PrimaryMetric
from raysim.core.errors import reason_of
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.simulation import records
from raysim.simulation.parts import path_of

NEEDED = {
    "rounds": (
        "round",
        "timestamp_ms",
        "wall_s",
        "clock/simulated_s",
        "simulated_s",
        "bytes",
        "energy_j",
        FIELD,
    ),
    "clients": ("round", "client", "tier", "fate", "lasts_s", "pruning_ratio", "train_loss", FIELD),
    "channels": ("round", "unit", "clients", "examples"),
}
"""Columns of each table that a run reads again, or that its readers need; `primary`: that of the primary metric."""
TEXT = ("tier", "fate")


class LostRecordError(RuntimeError):
    """The record of a round is missing, damaged, or not one of this run."""


def check_records(folder: StoragePath, last: int, run: str = "", primary: PrimaryMetric = ACCURACY) -> None:
    """Check that the records of all rounds up to the last one can be read.

    Args:
        folder: The run's folder.
        last: The last round.
        run: The key of the run; empty: not known.
        primary: The metric by which models are compared.

    Raises:
        LostRecordError: If one is missing or damaged, of another round or run, or has other columns.
        OSError: If an existing one cannot be read: it may be intact.
    """
    for table, fields in NEEDED.items():
        needed = tuple(map(primary.recorded, fields))
        if table == "channels" and not (folder / table).children():
            continue  # the run is of a version that did not count them
        for round in range(1, last + 1):
            name = f"{table}/{path_of(folder, round).name}"
            try:
                _check(records.read_round(folder / table, round, needed), table, round, needed)
            except FileNotFoundError:
                raise LostRecordError(f"{name} is missing") from None
            except (pa.ArrowException, KeyError, ValueError) as error:
                raise LostRecordError(f"{name} is damaged: {reason_of(error)}") from None
            except OSError as error:
                if error.errno is not None:
                    raise
                raise LostRecordError(f"{name} is damaged: {reason_of(error)}") from None
        for name, found in records.runs_of(folder / table, last).items() if run else ():
            if found not in ("", run):
                raise LostRecordError(f"{name} is of another run")


def _check(found: Columns, table: str, round: int, needed: Sequence[str]) -> None:
    for column in needed:
        if column not in found:
            raise ValueError(f"it has no {column!r}")
        kind = found[column].dtype.kind
        if len(found[column]) and (kind == "U") != (column in TEXT):
            raise ValueError(f"{column!r} is {'text' if kind == 'U' else 'no text'}")
    if not np.array_equal(found["round"], np.full(len(found["round"]), round)):
        raise ValueError("it is of another round")
    if table == "rounds" and len(found["round"]) != 1:
        raise ValueError(f"it has {len(found['round'])} rows")
