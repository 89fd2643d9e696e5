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


def sent(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in job_package.sent_files(folder)}


def test_what_ignore_files_name_stays_behind(tmp_path) -> None:
    make(tmp_path, "my.yaml", "runs/a/b", ".venv/lib/x.py", "sub/data/big.bin", "sub/code.py", "notes.tmp")
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    (tmp_path / "sub" / ".rayignore").write_text("data/\n")
    assert sent(tmp_path) == {"my.yaml", "sub/code.py", ".gitignore", "sub/.rayignore"}


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
    make(folder, "linked/file.py", "linked/skip.tmp")
    (folder / "link").symlink_to(folder / "linked")
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "empty").mkdir()
    ignored = "# comment\n\n*.tmp\n!keep.tmp\nout/\n!out/keep.txt\n/root.txt\ndeep/**/*.log\nd/**\n"
    (folder / ".gitignore").write_text(ignored)
    (folder / ".rayignore").write_text("data/*.bin\n")
    (folder / "sub" / ".gitignore").write_text("*.txt\n")
    found = sorted(job_package.sent_files(folder))
    assert found == sent_by_ray(folder, ignores_gitignore == "0")
    assert folder / "link" / "file.py" in found
    assert (folder / "a.tmp" in found) == (ignores_gitignore == "1")


def test_of_this_checkout_ray_would_send_the_same() -> None:
    found = sorted(job_package.sent_files(ROOT))
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
    with pytest.raises(SettingError, match=r"more than 2 MiB packed; largest: data \(3.0 MiB\);"):
        job_package.pack(folder, tmp_path / "packed.zip", "--working-dir")


def test_credentials_are_left_behind_and_named(tmp_path, capsys) -> None:
    folder = tmp_path / "folder"
    secret = (
        ".env", ".env.local", "sub/.env", ".ssh/id_ed25519", ".ssh/config", ".aws/credentials", ".netrc", ".pgpass",
        ".ray/auth_token", ".kube/config", "x.pem", "deep/server.key", ".docker/config.json",
        ".config/gcloud/adc.json", "gcp-service-account-1.json", ".git-credentials", "id_rsa",
        "kaggle.json", "terraform.tfstate",
    )  # fmt: skip
    plain = ("my.yaml", ".env.example", "environment.py", "keys.py", "token_model.py", "docker/config.json")
    make(folder, *secret, *plain)
    assert sent(folder) == set(plain)
    job_package.pack(folder, tmp_path / "packed.zip", "--working-dir")
    warned = capsys.readouterr().err
    assert "not sent: '.aws', '.config/gcloud', '.docker/config.json', '.env', '.env.local' and " in warned
    assert "credentials" in warned


def test_python_environments_are_left_behind_whatever_their_name(tmp_path) -> None:
    make(
        tmp_path, "env/bin/python", "env/lib/x.py", "mine/pyvenv.cfg", "conda/conda-meta/history", "gym/env/world.py"
    )
    assert sent(tmp_path) == {"gym/env/world.py"}


def test_links_out_of_the_folder_and_in_circles_are_not_followed(tmp_path, capsys) -> None:
    folder = tmp_path / "folder"
    make(folder, "my.yaml", "sub/code.py")
    make(tmp_path, "outside/other.py")
    targets = {"root": "/", "passwd": "/etc/passwd", "outside": tmp_path / "outside", "up": "..", "lost": "nowhere"}
    circles = {"itself": folder, "sub/above": folder / "sub", "sub/circle": folder}
    for name, target in (targets | circles).items():
        (folder / name).symlink_to(target)
    (folder / "alias.py").symlink_to(folder / "sub" / "code.py")
    os.mkfifo(folder / "pipe")
    assert sent(folder) == {"my.yaml", "sub/code.py", "alias.py"}
    job_package.pack(folder, tmp_path / "packed.zip", "--working-dir")
    assert (
        "not sent: 'itself', 'outside', 'passwd', 'root', 'sub/above' and 2 more: these links lead out"
        in capsys.readouterr().err
    )


def test_a_link_within_the_folder_to_credentials_is_left_behind(tmp_path) -> None:
    make(tmp_path, "my.yaml", ".env")
    (tmp_path / "settings.txt").symlink_to(tmp_path / ".env")
    assert sent(tmp_path) == {"my.yaml"}


def test_the_walk_ends_at_the_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(job_package, "LIMIT_BYTES", job_package.MIB)
    folder = tmp_path / "folder"
    for number in range(5):
        (folder / f"part{number}").mkdir(parents=True)
        (folder / f"part{number}" / "noise.bin").write_bytes(os.urandom(job_package.MIB + 1))
    read: list[Path] = []
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: read.append(path) or listed(path))
    with pytest.raises(SettingError, match=r"more than 1 MiB packed; largest: part0 \(1.0 MiB\);"):
        job_package.pack(folder, tmp_path / "packed.zip", "--working-dir")
    assert read == [folder, folder / "part0"]


def test_a_file_that_cannot_be_packed_is_named(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "folder"
    make(folder, "my.yaml")
    (folder / os.fsdecode(b"caf\xe9.py")).write_text("x = 1\n")
    with pytest.raises(SettingError, match=r"--working-dir: .*caf.* cannot be sent: "):
        job_package.pack(folder, tmp_path / "packed.zip", "--working-dir")
