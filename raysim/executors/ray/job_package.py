"""Pack the files of a folder that a job needs, and refuse a package that is too large before it is sent.

Ray's job client packs a folder by itself, but without compression, and learns that the package is too large only from
the server that it was sent to. Its walk over the folder is private, so this one reads the ignore files.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from pathspec import GitIgnoreSpec

from raysim.core.errors import SettingError

MIB = 1024 * 1024
LIMIT_BYTES = 100 * MIB
"""Largest package that Ray's job server accepts."""
EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", "*.egg-info", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".ipynb_checkpoints", "node_modules", "runs", "mlruns", "mlflow.db",
)  # fmt: skip
"""Patterns of files that are never sent, beside those in `.gitignore` and `.rayignore`."""
MOST_NAMED = 5
"""Number of entries of the folder that the message about a package that is too large names."""


def pack(folder: Path, archive: Path, setting: str) -> None:
    """Write the files of a folder that are sent into an archive.

    Args:
        folder: The folder.
        archive: Path of the archive, outside the folder.
        setting: Setting that the folder is the value of, for errors.

    Raises:
        SettingError: If the archive would be larger than Ray accepts; the message names the folder's largest entries.
    """
    files = sent_files(folder)
    with ZipFile(archive, "w", ZIP_DEFLATED) as packed:
        for file in files:
            packed.write(file, file.relative_to(folder))
            if archive.stat().st_size >= LIMIT_BYTES:
                raise SettingError(
                    f"{setting}={str(folder)!r} is too large to be sent: more than {LIMIT_BYTES // MIB} MiB packed; "
                    f"largest: {_largest(folder, files)}; name what the job does not need in .rayignore"
                )


def sent_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are sent, sorted.

    They are the files that Ray would send of the folder with `EXCLUDES`: files that a `.gitignore` or a `.rayignore`
    of the folder or of a subfolder names are left out. `RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1` turns `.gitignore` off.
    """
    excludes = GitIgnoreSpec.from_lines(EXCLUDES)
    return sorted(_walk(folder, [(folder, excludes)]))


Rules = Sequence[tuple[Path, GitIgnoreSpec]]
"""Patterns, each with the folder that they are relative to."""


def _walk(folder: Path, rules: Rules) -> Iterator[Path]:
    rules = [*rules, *((folder, spec) for spec in _ignore_files(folder))]
    for path in folder.iterdir():
        if any(spec.match_file(path.relative_to(top)) for top, spec in rules):
            continue
        if path.is_dir():
            yield from _walk(path, rules)
        elif path.is_file():
            yield path


def _ignore_files(folder: Path) -> Iterator[GitIgnoreSpec]:
    by_git = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    for name in (".gitignore", ".rayignore") if by_git else (".rayignore",):
        if (folder / name).is_file():
            yield GitIgnoreSpec.from_lines((folder / name).read_text(encoding="utf-8").splitlines())


def _largest(folder: Path, files: Sequence[Path]) -> str:
    sizes: dict[str, int] = {}
    for file in files:
        entry = file.relative_to(folder).parts[0]
        sizes[entry] = sizes.get(entry, 0) + file.stat().st_size
    largest = sorted(sizes, key=lambda entry: -sizes[entry])[:MOST_NAMED]
    return ", ".join(f"{entry} ({sizes[entry] / MIB:.1f} MiB)" for entry in largest)
