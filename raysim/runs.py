"""What a user calls a run: its output folder, or its id in MLflow."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raysim import places
from raysim.errors import SettingError, nearest_first
from raysim.place import Place


def folder_of(run: str) -> Place | None:
    """Return the folder that a run's name stands for; none = it is an id.

    Raises:
        SettingError: If it is neither, or the folder holds no run.
    """
    folder = places.at(run)
    with reading(folder):
        is_folder = folder.is_folder()
        holds_a_run = is_folder and (folder / "config.yaml").is_file()
    if is_folder and not holds_a_run:
        raise SettingError(f"RUN={run!r} holds no run: config.yaml is missing; allowed: the output folder of a run")
    if is_folder:
        return folder
    if re.fullmatch(r"[0-9a-f]{32}", run):
        return None
    hint = "" if folder.path is None else _nearest(folder.path)
    raise SettingError(f"RUN={run!r} is neither a folder nor the id of a run in MLflow{hint}")


def _nearest(path: Path) -> str:
    """Return a hint at the folder that may be meant: the one that a file of a run is in, else one beside it."""
    if (path.parent / "config.yaml").is_file():
        return f"; nearest folder: {str(path.parent)!r}"
    beside = [each.name for each in path.parent.glob("*/")] if path.parent.is_dir() else []
    return f"; nearest folder: {str(path.parent / nearest_first(path.name, beside)[0])!r}" if beside else ""


@contextmanager
def artifacts(run_id: str, uri: str, names: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Path]:
    """Copy artifacts of a run in MLflow into a folder that lasts as long as the context.

    Raises:
        SettingError: If the store cannot be read, or lacks one that is not optional.
    """
    from raysim import tracking  # MLflow takes seconds to import

    with tempfile.TemporaryDirectory() as copied:
        tracking.download(uri, run_id, names, Path(copied), optional)
        yield Path(copied)


@contextmanager
def reading(folder: Place) -> Iterator[None]:
    """Name the folder of a run in what goes wrong.

    Raises:
        SettingError: If it cannot be read.
    """
    try:
        yield
    except SettingError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SettingError(f"RUN={str(folder)!r} cannot be read: {reason}") from None
