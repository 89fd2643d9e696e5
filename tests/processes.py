"""Ray's daemons that a command has started and not ended."""

import contextlib
from pathlib import Path

import psutil


def mark(folder: Path) -> dict[str, str]:
    """Variables for a command's environment, by which `ray_daemons_of` finds what it has started."""
    return {"STARTED_BY": str(folder)}


def ray_daemons_of(folder: Path) -> list[str]:
    """Return the names of those that were started with the mark of a folder, in alphabetical order."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark(folder).items() <= process.environ().items() and process.name() in ("raylet", "gcs_server"):
                found.append(process.name())
    return sorted(found)


def listening_of(folder: Path) -> set[tuple[str, str, int]]:
    """Return process name, address and port of every socket on which processes with the mark of a folder listen."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark(folder).items() <= process.environ().items():
                sockets = process.net_connections(kind="inet")
                found |= {(process.name(), *each.laddr) for each in sockets if each.status == psutil.CONN_LISTEN}
    return found
