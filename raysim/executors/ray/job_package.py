"""Pack the files of a folder that a job needs, and refuse a package that is too large before it is sent.

Ray's job client packs a folder by itself, but without compression, and learns that the package is too large only from
the server that it was sent to. It sends files of credentials, too, and follows links to anywhere.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from pathspec import GitIgnoreSpec

from raysim.core.errors import SettingError, shortened
from raysim.core.log import warning

MIB = 1024 * 1024
LIMIT_BYTES = 100 * MIB
"""Largest package that Ray's job server accepts."""
EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", "*.egg-info", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".ipynb_checkpoints", "node_modules", "runs", "mlruns", "mlflow.db",
)  # fmt: skip
"""Patterns of files that are never sent, beside those in `.gitignore` and `.rayignore`."""
CREDENTIALS = """
    .env .env.* !.env.example !.env.template .envrc .netrc _netrc .pgpass .my.cnf .pypirc .npmrc .git-credentials
    .htpasswd .vault-token .databrickscfg .boto .s3cfg .dockercfg .docker/config.json .ssh/ .aws/ .azure/ .gnupg/
    .kube/ .kaggle/ kaggle.json .ray/auth_token gcloud/ .mlflow/credentials huggingface/token .huggingface/
    id_rsa* id_dsa* id_ecdsa* id_ed25519* *.pem *.key *.p12 *.pfx *.ppk *.jks *.keystore *.kdbx *.kubeconfig
    kubeconfig *service-account*.json *service_account*.json client_secret*.json *credentials*.json credentials
    secrets.json secrets.toml secrets.yaml secrets.yml *.tfstate *.tfstate.*
"""
"""Patterns of files that hold credentials by their names; they are never sent."""
ENVIRONMENT = ("pyvenv.cfg", "conda-meta", "bin/python", "Scripts/python.exe")
"""One of these makes a folder a Python environment, whatever its name; it is never sent."""
MOST_NAMED = 5
"""Number of entries of a folder that a message names."""


@dataclass(slots=True)
class LeftBehind:
    """The files of a folder that are not sent, although no ignore file names them."""

    credentials: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)


def pack(folder: Path, archive: Path, setting: str) -> None:
    """Write the files of a folder that are sent into an archive; a warning names those that might be missed.

    Args:
        folder: The folder.
        archive: Path of the archive, outside the folder.
        setting: Setting that the folder is the value of, for errors.

    Raises:
        SettingError: If a file cannot be read, or the archive would be larger than Ray accepts; the message names the
            folder's largest entries as far as the folder was read.
    """
    files, left = [], LeftBehind()
    with ZipFile(archive, "w", ZIP_DEFLATED, strict_timestamps=False) as packed:
        for file in sent_files(folder, left):
            files.append(file)
            try:
                packed.write(file, file.relative_to(folder))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SettingError(f"{setting}: {shortened(str(file))} cannot be sent: {reason}") from None
            if archive.stat().st_size >= LIMIT_BYTES:
                raise SettingError(
                    f"{setting}={str(folder)!r} is too large to be sent: more than {LIMIT_BYTES // MIB} MiB packed; "
                    f"largest: {_largest(folder, files)}; name what the job does not need in .rayignore"
                )
    _warn(folder, left)


def _warn(folder: Path, left: LeftBehind) -> None:
    reasons = {
        "such files hold credentials; set these in the environment of the cluster": left.credentials,
        "these links lead out of the folder, or back into a folder that holds them": left.links,
    }
    for reason, paths in reasons.items():
        if paths:
            names = ", ".join(shortened(str(path.relative_to(folder))) for path in paths[:MOST_NAMED])
            more = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
            warning(f"not sent: {names}{more}: {reason}")


def sent_files(folder: Path, left: LeftBehind | None = None) -> Iterator[Path]:
    """Yield the files of a folder that are sent, in the order of their names.

    They are the files that Ray would send of the folder with `EXCLUDES`, but for credentials, Python environments and
    links that lead out of the folder: files that a `.gitignore` or a `.rayignore` of the folder or of a subfolder
    names are left out. `RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1` turns `.gitignore` off.

    Args:
        folder: The folder.
        left: Where files that are left behind are recorded. None: nowhere.
    """
    excludes = GitIgnoreSpec.from_lines(EXCLUDES)
    yield from _Walk(folder, left or LeftBehind()).files(folder, [(folder, excludes)], (folder.resolve(),))


Rules = Sequence[tuple[Path, GitIgnoreSpec]]
"""Patterns, each with the folder that they are relative to."""


class _Walk:
    """A walk over a folder that never leaves it."""

    def __init__(self, top: Path, left: LeftBehind) -> None:
        self._top, self._real_top, self._left = top, top.resolve(), left
        self._credentials = GitIgnoreSpec.from_lines(CREDENTIALS.split())

    def files(self, folder: Path, rules: Rules, parents: tuple[Path, ...]) -> Iterator[Path]:
        """Yield the files below a folder; `parents` are the real paths of the folders above it, itself included."""
        rules = [*rules, *((folder, spec) for spec in _ignore_files(folder))]
        for path in sorted(folder.iterdir()):
            if any(spec.match_file(path.relative_to(top)) for top, spec in rules):
                continue
            real = path.resolve()
            is_folder = path.is_dir()
            if not real.is_relative_to(self._real_top) or (is_folder and real in parents):
                self._left.links.append(path)
            elif self._holds_credentials(path, is_folder) or (path.is_symlink() and self._holds_credentials(real)):
                self._left.credentials.append(path)
            elif is_folder:
                if not any((path / name).exists() for name in ENVIRONMENT):
                    yield from self.files(path, rules, (*parents, real))
            elif path.is_file():
                yield path

    def _holds_credentials(self, path: Path, is_folder: bool = False) -> bool:
        top = self._top if path.is_relative_to(self._top) else self._real_top
        return self._credentials.match_file(f"{path.relative_to(top)}{'/' if is_folder else ''}")


def _ignore_files(folder: Path) -> Iterator[GitIgnoreSpec]:
    by_git = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    for name in (".gitignore", ".rayignore") if by_git else (".rayignore",):
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            yield GitIgnoreSpec.from_lines(lines)


def _largest(folder: Path, files: Sequence[Path]) -> str:
    sizes: dict[str, int] = {}
    for file in files:
        entry = file.relative_to(folder).parts[0]
        sizes[entry] = sizes.get(entry, 0) + file.stat().st_size
    largest = sorted(sizes, key=lambda entry: -sizes[entry])[:MOST_NAMED]
    return ", ".join(f"{entry} ({sizes[entry] / MIB:.1f} MiB)" for entry in largest)
