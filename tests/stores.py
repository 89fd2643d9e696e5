"""MLflow stores that are ready: a new SQLite store costs a second of migrations, and a copy of one nothing."""

import logging
import shutil
import tempfile
from functools import cache
from pathlib import Path


def store_in(folder: Path | str, name: str = "mlflow.db") -> str:
    """Return the URI of the SQLite store in a folder; put an empty one there if it has none."""
    path = Path(folder) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_empty_store())
    return f"sqlite:///{path}"


def status_of(folder: Path) -> str:
    """Return MLflow's status of the only run of the digits in a folder's store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    return run.info.status


@cache
def _empty_store() -> bytes:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = Path(tempfile.mkdtemp())
    logging.disable(logging.INFO)  # MLflow logs migrations, into what a test captures
    try:
        store = SqlAlchemyStore(f"sqlite:///{folder}/empty.db", str(folder / "artifacts"))
        store.engine.dispose()
        return (folder / "empty.db").read_bytes()
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(folder)
