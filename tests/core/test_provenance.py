import json
import subprocess
from pathlib import Path

import pytest

from raysim.core import provenance
from raysim.core.storage.defaults import JOB


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit of a package, and an environment that it leaves out."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    (tmp_path / "package").mkdir()
    (tmp_path / "venv").mkdir()
    (tmp_path / "package" / "code.py").write_text("x = 1\n")
    (tmp_path / "venv" / "installed.py").write_text("x = 1\n")
    for command in (["init", "--quiet"], ["add", "package"], ["commit", "--quiet", "--message=first"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def head(repository: Path) -> str:
    command = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_commit_is_that_of_the_folder_and_says_if_files_were_changed(repository: Path, tmp_path_factory) -> None:
    assert provenance.commit_of(repository / "package") == head(repository)
    assert provenance.commit_of(repository / "package", is_code=True) == head(repository)
    assert provenance.commit_of(repository / "venv", is_code=True) == ""
    (repository / "package" / "code.py").write_text("x = 2\n")
    assert provenance.commit_of(repository) == f"{head(repository)}-dirty"
    assert provenance.commit_of(tmp_path_factory.mktemp("elsewhere")) == ""


def test_a_run_is_tagged_with_the_commit_of_the_working_directory(repository: Path, monkeypatch) -> None:
    monkeypatch.chdir(repository)
    (repository / "package" / "code.py").write_text("x = 2\n")
    found = provenance.tags()
    assert found["mlflow.source.git.commit"] == head(repository)
    assert found["mlflow.source.git.dirty"] == "true"
    assert found["mlflow.source.type"] == "LOCAL"
    assert "ray_job_id" not in found


def test_a_job_is_tagged_with_its_id_and_the_commit_it_was_submitted_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB, json.dumps({"metadata": {"job_submission_id": "raysubmit_7"}}))
    monkeypatch.setenv(provenance.COMMIT, "a" * 40)
    found = provenance.tags()
    assert (found["ray_job_id"], found["mlflow.source.type"]) == ("raysubmit_7", "JOB")
    assert (found["mlflow.source.git.commit"], found["mlflow.source.git.dirty"]) == ("a" * 40, "false")
