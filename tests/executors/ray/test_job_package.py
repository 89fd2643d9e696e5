"""The files of a folder that are sent with a job."""

import logging
import os
from pathlib import Path

import pytest
from ray._private.runtime_env import packaging

from raysim.core.errors import SettingError
from raysim.executors.ray import job_package
from tests.conftest import ROOT


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")


def sent_by_ray(folder: Path, include_gitignore: bool) -> list[Path]:
    """The files that Ray would send of a folder with the same excludes, by its own private walk."""
    found: list[Path] = []
    excludes = [packaging._get_excludes(folder, list(job_package.EXCLUDES))]
    packaging._dir_travel(folder, excludes, found.append, include_gitignore, logging.getLogger("quiet"))
    return sorted(path for path in found if path.is_file())


def test_what_ignore_files_name_stays_behind(tmp_path) -> None:
    make(tmp_path, "my.yaml", "runs/a/b", ".venv/lib/x.py", "sub/data/big.bin", "sub/code.py", "notes.tmp")
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    (tmp_path / "sub" / ".rayignore").write_text("data/\n")
    kept = {str(path.relative_to(tmp_path)) for path in job_package.sent_files(tmp_path)}
    assert kept == {"my.yaml", "sub/code.py", ".gitignore", "sub/.rayignore"}


@pytest.mark.parametrize("ignores_gitignore", ["0", "1"])
def test_the_files_are_those_that_ray_would_send(tmp_path, monkeypatch, ignores_gitignore) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", ignores_gitignore)
    folder = tmp_path / "folder"
    names = (
        "my.yaml", "a.tmp", "keep.tmp", "out/x", "out/keep.txt", "deep/out/y", "deep/a/b/c.log", "deep/z.log",
        "sub/root.txt", "root.txt", "x.egg-info/PKG-INFO", "sub/__pycache__/m.pyc", "mlflow.db", "data/big.bin",
        "data/small.csv", "d/one", "d/e/two", "odd name.txt",
    )  # fmt: skip
    make(folder, *names)
    make(tmp_path, "elsewhere/linked/file.py", "elsewhere/linked/skip.tmp")
    (folder / "link").symlink_to(tmp_path / "elsewhere" / "linked")
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "empty").mkdir()
    ignored = "# comment\n\n*.tmp\n!keep.tmp\nout/\n!out/keep.txt\n/root.txt\ndeep/**/*.log\nd/**\n"
    (folder / ".gitignore").write_text(ignored)
    (folder / ".rayignore").write_text("data/*.bin\n")
    (folder / "sub" / ".gitignore").write_text("*.txt\n")
    found = job_package.sent_files(folder)
    assert found == sent_by_ray(folder, ignores_gitignore == "0")
    assert folder / "link" / "file.py" in found
    assert (folder / "a.tmp" in found) == (ignores_gitignore == "1")


def test_of_this_checkout_ray_would_send_the_same() -> None:
    found = job_package.sent_files(ROOT)
    assert ROOT / "raysim" / "simulation" / "round.py" in found
    assert found == sent_by_ray(ROOT, include_gitignore=True)


def test_a_folder_that_is_too_large_is_refused_with_what_is_largest(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(job_package, "LIMIT_BYTES", 2 * job_package.MIB)
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    (folder / "my.yaml").write_text("rounds: 1\n")
    (folder / "data" / "zeros.bin").write_bytes(bytes(3 * job_package.MIB))
    job_package.pack(folder, tmp_path / "packed.zip", "--working-dir")  # what counts is the packed size
    assert (tmp_path / "packed.zip").stat().st_size < job_package.MIB
    (folder / "data" / "noise.bin").write_bytes(os.urandom(3 * job_package.MIB))
    with pytest.raises(SettingError, match=r"more than 2 MiB packed; largest: data \(6.0 MiB\), my.yaml"):
        job_package.pack(folder, tmp_path / "packed.zip", "--working-dir")
