"""The folder of a run: made, checked, and held against other processes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from raysim.core.errors import SettingError, reason_of
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath


def check_folder(folder: StoragePath) -> None:
    """Raise SettingError if the folder holds a run already."""
    with as_setting(folder, "cannot be read"):
        holds_a_run = (folder / "config.yaml").is_file()
    if holds_a_run:
        raise SettingError(
            f"--output={str(folder)!r} holds a run already; give a folder without one, or go on with `raysim resume`"
        )


def make_folder(folder: AnyPath) -> None:
    """Make a folder; raise SettingError if that cannot be."""
    place = storage_path(folder)
    with as_setting(place, "cannot be made"):
        place.make()


@contextmanager
def as_setting(folder: StoragePath, what: str) -> Iterator[None]:
    """Tell what goes wrong with the folder as a matter of `--output`.

    Raises:
        SettingError: If it cannot be read, made or written.
    """
    try:
        yield
    except OSError as error:
        raise SettingError(f"--output={str(folder)!r} {what}: {error.strerror or reason_of(error)}") from None


@contextmanager
def held(folder: StoragePath) -> Iterator[None]:
    """Hold the run's folder, so that no other process writes into it.

    Raises:
        SettingError: If another process does.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.locked())
        except BlockingIOError:
            raise SettingError(f"{str(folder)!r} is in use: its run is going on in another process") from None
        yield
