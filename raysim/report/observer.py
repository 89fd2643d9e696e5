"""Write the report of a run when it ends."""

import traceback
from contextlib import suppress

from raysim.core.errors import ReportLostError, reason_of
from raysim.core.log import info, warning
from raysim.core.storage.path import StoragePath
from raysim.simulation.state import RoundReport
from raysim.tracking.observer import RunInfo, RunOutcome

FILE = "report.html"


class ReportObserver:
    """Writes the report of a run: of a finished one, or of the rounds so far if it failed or was stopped."""

    def __init__(self) -> None:
        self._folder: StoragePath | None = None

    def on_begin(self, run: RunInfo, resumed_from: int) -> None:
        """Remember the folder."""
        self._folder = run.folder

    def on_round(self, report: RoundReport) -> None:
        """Do nothing: the report is written from the records."""

    def on_end(self, outcome: RunOutcome) -> None:
        """Write the report; one that is there already is left as it is.

        Raises:
            ReportLostError: If a finished run has no report.
        """
        if self._folder is None or outcome.is_hasty:
            return
        if outcome.state == "finished":
            _write_final(self._folder)
        elif (self._folder / "rounds").children():
            with suppress(Exception):
                info(f"report of the rounds so far: {_write(self._folder)}")


def _write_final(folder: StoragePath) -> None:
    """Write the report, unless it was written before the run was interrupted."""
    if (folder / FILE).is_file():
        return
    try:
        _write(folder)
    except Exception as error:
        warning(traceback.format_exc())
        raise ReportLostError(
            f"the report could not be made: {type(error).__name__}: {reason_of(error)}; all results are in {folder}, "
            f"and `raysim report {folder}` tries again"
        ) from error


def _write(folder: StoragePath) -> StoragePath:
    from raysim.report import write  # Plotly would delay the first round

    return write.of_ended(folder)
