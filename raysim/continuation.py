"""Finds where a stopped run goes on: after the newest round whose checkpoint and record are both whole."""

from raysim import checkpoint, records
from raysim.errors import reason_of
from raysim.messages import say
from raysim.place import Place
from raysim.types import FIRST, Start


def newest(folder: Place) -> Start:
    """Return where a run goes on; each checkpoint that has to be passed over is told.

    Args:
        folder: Where the run's files are.

    Raises:
        OSError: If a file that is there cannot be read: it may be whole.
    """
    for state in checkpoint.intact(folder / "checkpoints", say):
        try:
            return Start(state.round, records.logged(folder / "rounds", state.round).wall_s)
        except (FileNotFoundError, records.TornRecordError) as error:
            say(f"passing over the checkpoint of round {state.round}, whose record is lost: {reason_of(error)}")
    return FIRST
