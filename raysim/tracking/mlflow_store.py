"""Open an MLflow store within seconds; an SQLite file is made whole, by one process at a time."""

import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies

from filelock import FileLock, Timeout
from mlflow.tracking import MlflowClient

from raysim.core.log import warning
from raysim.core.storage import atomic
from raysim.tracking.mlflow_limits import LIMITS
from raysim.tracking.mlflow_loggers import silence

SQLITE = "sqlite:///"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
ANSWER_S = 6.0
"""Seconds within which a server must give its first answer; a database, accept a connection."""
UNLOCK_S = 5.0
"""Seconds to wait for an SQLite file that another program has locked."""
MAKE_S = 120.0
"""Seconds in which a database makes or migrates its tables; a slow machine needs many."""
NOTICE_S = 2.0
"""Seconds of them after which a line names the file that is waited for."""
PORTS = {"http": 80, "https": 443}

Answer = TypeVar("Answer")


def is_database(uri: str) -> bool:
    """Whether MLflow reaches a store through SQLAlchemy."""
    return uri.partition(":")[0].partition("+")[0] in DATABASES


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store as SQLAlchemy opens it; None for any other store.

    >>> sqlite_file("sqlite:////data/a%20b/m.db?timeout=9"), sqlite_file("http://localhost:5000")
    (PosixPath('/data/a b/m.db'), None)
    """
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])) if uri.startswith(SQLITE) else None


def sqlite_uri(file: Path, options: str = "") -> str:
    """Return the URI of an SQLite file; only what SQLAlchemy would misread is escaped.

    >>> sqlite_uri(Path("/data/a b/m.db")), sqlite_uri(Path("/data/50%20/m?.db"), "timeout=9")
    ('sqlite:////data/a b/m.db', 'sqlite:////data/50%2520/m%3F.db?timeout=9')
    """
    path = str(file)
    if "?" in path or unquote(path) != path:
        path = quote(path, safe="/ ")
    return f"{SQLITE}{path}{f'?{options}' if options else ''}"


def open_to_write(uri: str, first: Callable[[MlflowClient], Answer]) -> tuple[MlflowClient, Answer]:
    """Open a store, and make an SQLite file that is missing; return MLflow's client and its first answer.

    MLflow's loggers are silent from now on: threads write to the store while the process lasts.

    Args:
        uri: The store.
        first: The first call; for an SQLite file no other process calls at the same time.

    Raises:
        Exception: The error of the store, within seconds; two minutes while another process holds an SQLite file.
    """
    silence.hold()
    file = sqlite_file(uri)
    if file is None:
        return _answer_of_server(uri, first)
    file.parent.mkdir(parents=True, exist_ok=True)
    _size(file)
    with _alone(file):
        if _size(file) == 0:
            _make(file)
        _probe(file, "BEGIN IMMEDIATE")
        client = MlflowClient(uri)
        return client, first(client)


def open_to_read(uri: str) -> MlflowClient:
    """Return MLflow's client of a store that is there.

    Raises:
        Exception: The error of the store, within seconds; two minutes while another process holds an SQLite file.
    """
    file = sqlite_file(uri)
    if file is None:
        return _answer_of_server(uri, _any_experiment)[0]
    with _alone(file):  # MLflow migrates an old store when it reads it, too
        _probe(file, "SELECT count(*) FROM experiments")
        client = MlflowClient(uri)
        _any_experiment(client)
        return client


def _any_experiment(client: MlflowClient) -> object:
    return client.search_experiments(max_results=1)


def _size(file: Path) -> int:
    """Return the size of a file; 0 if there is none.

    Raises:
        IsADirectoryError: If it is a folder.
    """
    if file.is_dir():
        raise IsADirectoryError("it is a folder")
    return file.stat().st_size if file.exists() else 0


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Lock a file beside an SQLite file: MLflow breaks a store that two processes make or migrate at once."""
    path = file.with_name(f".{file.name}.lock")
    try:
        lock = _locked(path)
    except Timeout:
        raise TimeoutError(
            f"another process has held the lock {str(path)!r} for {MAKE_S:g} s; allowed: another store, or this one "
            "after that process has ended"
        ) from None
    except OSError:
        if _size(file) == 0:
            raise
        yield  # somebody else's store in a folder where this user may make no files
        return
    with lock:
        yield


def _locked(path: Path) -> AbstractContextManager[object]:
    lock = FileLock(path, mode=0o666)
    with suppress(Timeout):
        return lock.acquire(timeout=min(NOTICE_S, MAKE_S))
    warning(
        f"waiting for the lock {str(path)!r}, at most {MAKE_S:g} s: another process is making or opening the store"
    )
    return lock.acquire(timeout=max(MAKE_S - NOTICE_S, 0))


def _make(file: Path) -> None:
    """Make an empty store beside its final path, and rename it: a process that is killed leaves no half of one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def fill(partial: Path) -> None:
        store: Any = SqlAlchemyStore(sqlite_uri(partial), str(file.parent / "artifacts"))  # type: ignore[no-untyped-call]
        store.engine.dispose()

    for left in file.parent.glob(f".{file.name}.*.partial*"):
        left.unlink(missing_ok=True)
    atomic.write_atomically(file, fill)


def _probe(file: Path, statement: str) -> None:
    """Raise the error of an SQLite file at once: MLflow would try for minutes."""
    _size(file)
    with closing(sqlite3.connect(file, timeout=UNLOCK_S, isolation_level=None)) as connection:
        connection.execute(statement)
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _answer_of_server(uri: str, first: Callable[[MlflowClient], Answer]) -> tuple[MlflowClient, Answer]:
    if is_database(uri):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (the import is not the server's time)

    def ask() -> tuple[MlflowClient, Answer]:
        with silence.held():  # a thread that is left alone prints nothing, either
            client = MlflowClient(uri)
            return client, first(client)

    within(_patience_s(), lambda: _connect(uri))
    return within(MAKE_S if is_database(uri) else _patience_s(), ask)


def _connect(uri: str) -> None:
    """Raise the error of a server that is not there at once: MLflow would try for minutes."""
    if not is_database(uri):
        address = urlsplit(uri)
        if address.hostname and address.scheme in PORTS and not getproxies():
            socket.create_connection((address.hostname, address.port or PORTS[address.scheme])).close()
        return
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _patience_s() -> float:
    """Return how long to wait for a first answer: longer only if the user has set a time limit of MLflow's."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    own = os.environ.get(name, LIMITS[name])
    with suppress(ValueError):
        return ANSWER_S if own == LIMITS[name] else float(own)
    return ANSWER_S


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Return the result of a call, or raise its error.

    Args:
        seconds: How long to wait; then the call is left alone in a thread, which does not hold up the process's end.
        call: The call.

    Raises:
        TimeoutError: If there is no result in time.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, name="raysim-first-answer", daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    if errors:
        raise errors[0]
    raise TimeoutError(f"no answer within {seconds:g} s")
