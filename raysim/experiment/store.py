"""The MLflow store of an experiment; MLflow is imported only if there is one."""

from typing import TYPE_CHECKING

from raysim.config.tracking import WITHOUT_MLFLOW
from raysim.core.storage.path import StoragePath
from raysim.tracking.mlflow_limits import limit_waits

if TYPE_CHECKING:
    from raysim.tracking.mlflow_writer import MlflowWriter


def store_of(uri: str | None) -> str:
    """Return the complete URI that a value of `tracking.uri` means, or `none`.

    Raises:
        SettingError: If it is not allowed.
    """
    if uri == WITHOUT_MLFLOW:
        return uri
    from raysim.tracking.mlflow_writer import resolve_uri

    return resolve_uri(uri, WITHOUT_MLFLOW)


def open_tracker(uri: str, name: str, folder: StoragePath) -> "MlflowWriter | None":
    """Open the MLflow store of a run; return None for a run without MLflow.

    Args:
        uri: The store, or `none`.
        name: The name of the MLflow experiment.
        folder: The files of the run.

    Raises:
        SettingError: If the store cannot be opened.
    """
    if uri == WITHOUT_MLFLOW:
        return None
    limit_waits()
    from raysim.tracking.mlflow_writer import MlflowWriter

    return MlflowWriter(uri, name, beside=str(folder.parent))
