"""The folder of a run: make, check and lock it, and update its `run.json`."""

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from raysim.core.errors import SettingError, reason_of
from raysim.core.json_text import json_in
from raysim.core.storage.local import AnyPath, storage_path
from raysim.core.storage.path import StoragePath
from raysim.tracking.run_files import json_object

FILES = ("run.json", "summary.json", "rounds.parquet", "clients.parquet", "channels.parquet")
FOLDERS = ("rounds", "clients", "channels", "checkpoints")
"""Files and folders of a run that remain if its settings are lost."""


def check_folder(folder: StoragePath) -> None:
    """Raise SettingError if the folder holds a run already."""
    with as_setting(folder, "cannot be read"):
        holds_a_run = (folder / "config.yaml").is_file()
        left = [name for name in FILES if (folder / name).is_file()]
        left += [f"{name}/" for name in FOLDERS if (folder / name).children()]
    if holds_a_run:
        raise SettingError(
            f"--output={str(folder)!r} holds a run already; give a folder without one, or continue it by `raysim "
            "resume`"
        )
    if left:
        raise SettingError(
            f"--output={str(folder)!r} holds {left[0]} of another run; give a folder without, or delete what is in it"
        )


def new_key() -> str:
    """Return a text that identifies a run; no two runs have the same."""
    return uuid.uuid4().hex


def check_alone(folder: StoragePath, key: str) -> None:
    """Raise SettingError if another run than the one with this key has begun in a folder that was checked before."""
    if json_object(folder / "run.json").get("key") != key:
        check_folder(folder)


def make_folder(given: AnyPath) -> None:
    """Make a folder; raise SettingError if that is not possible."""
    folder = storage_path(given)
    with as_setting(folder, "cannot be made"):
        folder.make()


def update_run_json(folder: StoragePath, **changes: object) -> None:
    """Change entries of `run.json`.

    Args:
        folder: The files of the run.
        changes: Entries by name; None removes one. `finished` is whether nothing is left to do, `state` is `failed`
            or `stopped` if the run has ended without results, and `failure` is the reason.
    """
    before = json_in((folder / "run.json").read_text())
    after = {name: value for name, value in (before | changes).items() if value is not None}
    if after != before:
        (folder / "run.json").write_text(json.dumps(after, indent=2))


@contextmanager
def as_setting(folder: StoragePath, what: str) -> Iterator[None]:
    """Report a problem with the folder as a problem of `--output`.

    Raises:
        SettingError: If it cannot be read, made or written.
    """
    try:
        yield
    except OSError as error:
        raise SettingError(f"--output={str(folder)!r} {what}: {error.strerror or reason_of(error)}") from None


@contextmanager
def locked(folder: StoragePath) -> Iterator[None]:
    """Lock the folder of a run, so that no other process writes to it.

    Raises:
        SettingError: If another process has locked it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.locked())
        except BlockingIOError:
            raise SettingError(f"{str(folder)!r} is in use: another process runs it") from None
        yield
