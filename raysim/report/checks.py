"""Check that a run has the records that its report is made from."""

from raysim.config.metric import FIELD
from raysim.core.errors import SettingError
from raysim.tracking.run_files import check_has, reading
from raysim.tracking.run_reader import SUMMARY, RunReader

NEEDED = ("rounds", "clients")
"""Tables without which there is no report; a report without any of the other files states this in a section."""
COLUMNS = {
    "rounds": ("round", "round_s", "simulated_s", "bytes", "energy_j", FIELD),
    "clients": (
        "round", "client", "tier", "fate", "start_s", "lasts_s", "pruning_ratio", "download_s", "compute_s",
        "upload_s", "total_s",
    ),
    "channels": ("round", "unit", "clients", "examples"),
    "partition": ("client", "label", "rows"),
}  # fmt: skip
"""Columns that the tables of a run must have, if it has the table; `primary` is that of the primary metric."""


def check_records(run: RunReader) -> None:
    """Check that a run has rounds, and that its tables have the columns of a report.

    Raises:
        SettingError: If it has no round, or its records are damaged or of a version that wrote less.
    """
    missing = [table for table in NEEDED if run.table_file(table) is None]
    if missing and not run.has(SUMMARY):
        raise _no_round(run)
    if missing:
        raise SettingError(
            f"RUN={run.name!r} cannot be shown: {missing[0]}.parquet is missing; a run of this version writes it"
        )
    primary = run.primary
    for table, fields in COLUMNS.items():
        needed = tuple(map(primary.recorded, fields))
        found = run.column_names(table)
        with reading(run.name):
            check_has(f"{table}.parquet", found, needed if found else ())
    if not len(run.rounds["round"]):
        raise _no_round(run)


def _no_round(run: RunReader) -> SettingError:
    return SettingError(f"RUN={run.name!r} has no round yet: there is nothing to show")
