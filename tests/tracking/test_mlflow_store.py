"""Stores that many processes make at once, that cannot be opened, or that never answer."""

import json
import logging
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from raysim.core.errors import SettingError, TrackingLostError
from raysim.tracking import mlflow_reader, mlflow_store
from raysim.tracking.mlflow_loggers import Silence
from raysim.tracking.mlflow_reader import MlflowReader
from raysim.tracking.mlflow_store import sqlite_file, sqlite_uri
from raysim.tracking.mlflow_writer import MlflowWriter, resolve_uri
from tests.conftest import ROOT
from tests.servers import free_port
from tests.stores import store_in

RETRIES_S = 60
"""MLflow's own attempts at a store take longer."""

OPENS = """
import sys, time
from raysim.tracking.mlflow_writer import MlflowWriter
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
tracker = MlflowWriter(sys.argv[1], "shared")
tracker.create("first", {})
"""

HOLDS = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.readline()
"""

REFUSALS = """
import json, sys
from tests.tracking.test_mlflow_store import refusal_of
print(json.dumps([refusal_of(uri) for uri in sys.argv[1:]]))
"""


@contextmanager
def silent() -> Iterator[int]:
    """A server that accepts connections and never answers; yields its port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(8)
        yield bound.getsockname()[1]


@contextmanager
def held_lock(path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds a lock until it reads a line, or is killed at the end."""
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def refusal_of(uri: str, opens: type = MlflowWriter) -> tuple[str, float]:
    """The message with which a store is refused, and the seconds until then."""
    arguments = ("x",) if opens is MlflowWriter else ()
    started = time.monotonic()
    with pytest.raises(SettingError) as refused:
        opens(uri, *arguments)
    return str(refused.value), time.monotonic() - started


@pytest.mark.parametrize(
    ("written", "opened"),
    [
        ("sqlite:////data/a%20b/m.db", "/data/a b/m.db"),
        ("sqlite:////data/100%/m.db", "/data/100%/m.db"),
        ("sqlite:////data/50%2520/%3F.db", "/data/50%20/?.db"),
        ("sqlite:////data/m.db?timeout=9", "/data/m.db"),
    ],
)
def test_a_file_is_the_one_that_sqlalchemy_opens(written: str, opened: str) -> None:
    from sqlalchemy.engine import make_url

    resolved = resolve_uri(written)
    assert make_url(resolved).database == make_url(written).database == opened == str(sqlite_file(resolved))
    assert make_url(resolved).query == make_url(written).query
    assert resolve_uri(resolved) == resolved


def test_a_percent_encoded_path_is_one_folder(tmp_path: Path) -> None:
    uri = resolve_uri(f"sqlite:///{tmp_path}/a%20b/m.db")
    store_in(tmp_path / "a b", "m.db")
    MlflowWriter(uri, "x")
    assert [each.name for each in tmp_path.iterdir()] == ["a b"]
    assert MlflowReader(uri).experiments() == ["x", "Default"]


@pytest.mark.slow
def test_first_runs_at_once_make_one_store(tmp_path: Path) -> None:
    uri = sqlite_uri(tmp_path / "new" / "m.db")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENS, uri],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
    for process in processes:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    printed = [line for process in processes for line in process.communicate()[1].splitlines()]
    assert [process.returncode for process in processes] == [0] * 3
    assert all(line.startswith("waiting for the lock ") for line in printed), printed
    assert len(MlflowReader(uri).experiment("shared") or ()) == 3
    assert not list((tmp_path / "new").glob("*.partial*"))


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_makes_a_store_breaks_nothing(tmp_path: Path, monkeypatch) -> None:
    """All but the rename has happened, or only the empty file is there."""
    uri = sqlite_uri(tmp_path / "m.db")
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: sys.exit(9))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            mlflow_store._make(tmp_path / "m.db")
    assert list(tmp_path.glob(".m.db.*.partial"))
    (tmp_path / "m.db").touch()
    MlflowWriter(uri, "x").create("run", {})
    assert not list(tmp_path.glob(".m.db.*.partial*"))


@pytest.mark.parametrize("opens", [MlflowWriter, MlflowReader])
def test_a_file_that_cannot_be_used_is_refused_at_once(opens: type, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(mlflow_store, "UNLOCK_S", 0.5)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("no database " * 100)
    store = store_in(tmp_path, "locked.db")
    found = {name: refusal_of(f"sqlite:///{tmp_path}/{name}.db", opens) for name in ("folder", "text")}
    with locked(tmp_path / "locked.db"):
        found["locked"] = refusal_of(store, opens)
    assert max(seconds for _, seconds in found.values()) < RETRIES_S
    assert found["locked"][0].endswith("database is locked")
    assert found["text"][0].endswith("file is not a database")
    assert "folder.db" in found["folder"][0]
    if opens is MlflowWriter:
        assert refusal_of("sqlite:////proc/nowhere/m.db")[0].endswith("cannot be opened: No such file or directory")


@pytest.mark.parametrize("opens", [MlflowWriter, MlflowReader])
def test_a_process_that_hangs_with_the_lock_of_a_store_is_named_and_then_refused(
    opens: type, tmp_path: Path, monkeypatch, capsys
) -> None:
    store, lock = store_in(tmp_path, "m.db"), tmp_path / ".m.db.lock"
    assert mlflow_store.NOTICE_S < 10, "docs/resume.md"
    monkeypatch.setattr(mlflow_store, "NOTICE_S", 0.2)
    monkeypatch.setattr(mlflow_store, "MAKE_S", 0.5)
    with held_lock(lock):
        message, seconds = refusal_of(store, opens)
    assert 0.5 <= seconds < RETRIES_S
    assert f"another process has held the lock '{lock}' for 0.5 s; allowed: another store, or this one" in message
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"waiting for the lock '{lock}', at most 0.5 s: another process is making or opening")
    opens(store, *(("x",) if opens is MlflowWriter else ()))  # the process that was killed holds nothing
    assert capsys.readouterr().err == ""


def test_a_store_whose_lock_is_released_in_time_is_opened(tmp_path: Path, monkeypatch, capsys) -> None:
    store, lock = store_in(tmp_path, "m.db"), tmp_path / ".m.db.lock"
    monkeypatch.setattr(mlflow_store, "NOTICE_S", 0.2)
    with held_lock(lock) as process:
        log = mlflow_store.warning

        def release(text: str) -> None:
            log(text)
            process.communicate("\n")

        monkeypatch.setattr(mlflow_store, "warning", release)
        assert MlflowReader(store).experiments() == ["Default"]
    assert capsys.readouterr().err.count("waiting for the lock") == 1


def levels() -> list[int]:
    return [logging.getLogger(name).level for name in ("mlflow", "alembic", "sqlalchemy")]


def test_readers_put_the_levels_of_loggers_back_and_print_nothing(tmp_path: Path, monkeypatch, capfd) -> None:
    """The loggers are those of a program in which nothing has been written."""
    own = Silence(("mlflow", "alembic", "sqlalchemy"))
    monkeypatch.setattr(mlflow_reader, "silence", own)
    monkeypatch.setattr(mlflow_store, "silence", own)
    store, before = store_in(tmp_path), levels()
    try:
        for name, level in (("mlflow", 20), ("alembic", 30), ("sqlalchemy", 0)):
            logging.getLogger(name).setLevel(level)
        reader = MlflowReader(store)
        assert reader.run("0" * 32) is None
        assert levels() == [20, 30, 0]
        Path(sqlite_file(store)).write_text("no database " * 100)
        with pytest.raises(SettingError, match="cannot be read"):
            reader.experiments()
        refusal_of(store, MlflowReader)
        assert levels() == [20, 30, 0]
        assert capfd.readouterr().err == ""
        MlflowWriter(store_in(tmp_path, "other.db"), "x")
        MlflowReader(store_in(tmp_path, "other.db"))
        assert levels() == [logging.CRITICAL] * 3, "threads of a tracked run go on"
    finally:
        for name, level in zip(("mlflow", "alembic", "sqlalchemy"), before, strict=True):
            logging.getLogger(name).setLevel(level)


@pytest.mark.slow
def test_a_store_on_a_disk_that_is_read_only_is_refused_at_once(tmp_path: Path) -> None:
    """A store that is there, and one that is not; the mount is seen by this process alone."""
    store_in(tmp_path, "there.db")
    mounted = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    if subprocess.run(["unshare", "-m", "bash", "-c", mounted], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    command = ["unshare", "-m", "bash", "-c", f'{mounted} && exec "$@"', "_", sys.executable, "-c", REFUSALS]
    files = [f"sqlite:///{tmp_path}/{name}.db" for name in ("there", "new")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=ROOT)
    there, new = json.loads(done.stdout)
    assert there[0].endswith("attempt to write a readonly database")
    assert new[0].endswith("new.db' cannot be opened: Read-only file system")
    assert max(there[1], new[1]) < RETRIES_S


@pytest.mark.parametrize("opens", [MlflowWriter, MlflowReader])
@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_server_that_is_silent_or_down_is_refused_within_seconds(scheme: str, opens: type, monkeypatch) -> None:
    monkeypatch.setattr(mlflow_store, "ANSWER_S", 1.0)
    with silent() as port:
        message, seconds = refusal_of(f"{scheme}://127.0.0.1:{port}/x", opens)
    assert message.endswith("no answer within 1 s")
    assert seconds < RETRIES_S
    message, seconds = refusal_of(f"{scheme}://127.0.0.1:{free_port()}/x", opens)
    assert "Connection refused" in message
    assert seconds < RETRIES_S


def test_a_reader_makes_no_store_of_another_file(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.db").close()
    (tmp_path / "other.db").touch()
    assert refusal_of(f"sqlite:///{tmp_path}/other.db", MlflowReader)[0].endswith("no such table: experiments")
    assert (tmp_path / "other.db").stat().st_size == 0


@pytest.mark.slow
def test_a_locked_store_prints_nothing_of_its_own(tmp_path: Path, capfd) -> None:
    from mlflow.store.db import utils

    tracker = MlflowWriter(store_in(tmp_path), "x")
    tracker.create("run", {})
    store = tracker.client._tracking_client.store
    with locked(tmp_path / "mlflow.db"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.sql, "text", lambda statement: _sql(statement.replace("20000", "200")))
        with pytest.raises(TrackingLostError, match="database is locked"):
            tracker.tag({"a": "b"})
    assert store is not None
    assert capfd.readouterr().err == ""


def _sql(statement: str):
    from sqlalchemy import TextClause

    return TextClause(statement)
