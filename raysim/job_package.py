"""What a job takes along to its cluster: a folder as one archive, small enough to be sent."""

import logging
import os
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from ray._private.runtime_env import packaging

from raysim.errors import SettingError

MIB = 1024 * 1024
LIMIT_BYTES = 100 * MIB
"""What Ray's job server takes in one request."""
EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", "*.egg-info", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".ipynb_checkpoints", "node_modules", "runs", "mlruns", "mlflow.db",
)  # fmt: skip
"""What stays behind, beside all that `.gitignore` and `.rayignore` name."""
NAMED = 5


def pack(folder: Path, archive: Path, setting: str) -> None:
    """Write what a job needs of a folder into an archive.

    Args:
        folder: The folder.
        archive: Where the archive goes, outside the folder.
        setting: Where the folder was given, for errors.

    Raises:
        SettingError: If it would be larger than Ray takes; the message names what is largest in the folder.
    """
    files = kept_files(folder)
    with ZipFile(archive, "w", ZIP_DEFLATED) as packed:
        for file in files:
            packed.write(file, file.relative_to(folder))
            if archive.stat().st_size >= LIMIT_BYTES:
                raise SettingError(
                    f"{setting}={str(folder)!r} is too large to be sent: more than {LIMIT_BYTES // MIB} MiB packed; "
                    f"largest: {_largest(folder, files)}; name what the job does not need in .rayignore"
                )


def kept_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are sent, sorted; Ray's own reading of the ignore files."""
    found: list[Path] = []
    ignored = packaging._get_excludes(folder, list(EXCLUDES))
    by_git = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    quiet = logging.getLogger(f"{__name__}.quiet")
    quiet.setLevel(logging.ERROR)
    packaging._dir_travel(folder, [ignored], found.append, include_gitignore=by_git, logger=quiet)
    return sorted(file for file in found if file.is_file())


def _largest(folder: Path, files: list[Path]) -> str:
    sizes: dict[str, int] = {}
    for file in files:
        entry = file.relative_to(folder).parts[0]
        sizes[entry] = sizes.get(entry, 0) + file.stat().st_size
    largest = sorted(sizes, key=lambda entry: -sizes[entry])[:NAMED]
    return ", ".join(f"{entry} ({sizes[entry] / MIB:.1f} MiB)" for entry in largest)
