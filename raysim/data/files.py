"""Check what lies at a path before it is opened: opening a named pipe waits for ever."""

import os
import stat
from pathlib import Path

from raysim.core.errors import SettingError

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def regular(path: Path, setting: str) -> os.stat_result:
    """Return the status of a file, of the one that a link leads to.

    Args:
        path: The file.
        setting: The setting that it belongs to, with its value.

    Raises:
        SettingError: If there is none, its name is no text, or it is no regular file.
    """
    try:
        os.fspath(path).encode()
        found = path.stat()
    except UnicodeEncodeError:
        raise SettingError(f"{setting}: the name of {str(path)!r} is no UTF-8; allowed: names of text") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        link = "the link " if path.is_symlink() else ""
        raise SettingError(f"{setting}: {link}{str(path)!r} cannot be read: {reason}; allowed: files") from None
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise SettingError(f"{setting}: {str(path)!r} is {kind}; allowed: regular files")
    return found


def refuse_special(folder: Path, setting: str) -> None:
    """Raise SettingError if something in a folder, not below, is neither a folder nor a regular file."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if path.exists() and not path.is_dir():
            regular(path, setting)
