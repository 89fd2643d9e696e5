"""Read what an MLflow store holds of runs: by id, by parent, by experiment."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from raysim.core.errors import SettingError, reason_of
from raysim.tracking import mlflow_store
from raysim.tracking.mlflow_loggers import silence

PAGE = 500
"""Runs that one request returns."""
MISSING = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run in MLflow.

    Attributes:
        id: Its id.
        experiment_id: Id of the experiment it belongs to.
        name: As MLflow's pages show it.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: By name.
        params: By name.
    """

    id: str
    experiment_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]

    @property
    def parent(self) -> str | None:
        """Id of the run it belongs to."""
        return self.tags.get(MLFLOW_PARENT_RUN_ID)


class MlflowReader:
    """An MLflow store that is only read."""

    def __init__(self, uri: str) -> None:
        """Open the store.

        Raises:
            SettingError: If it is an SQLite file that does not exist, or it cannot be opened.
        """
        self.uri = uri
        file = mlflow_store.sqlite_file(uri)
        if file is not None and not file.is_file():
            raise SettingError(f"tracking.uri={uri!r} names no existing SQLite file")
        with self._reading():
            self._client = mlflow_store.open_to_read(uri)

    @contextmanager
    def _reading(self, run_id: str = "") -> Iterator[None]:
        try:
            with silence.held():
                yield
        except Exception as error:
            store = f"tracking.uri={self.uri!r}"
            where = f"RUN={run_id!r} cannot be read from {store}" if run_id else f"{store} cannot be read"
            raise SettingError(f"{where}: {reason_of(error)}") from None

    def run(self, run_id: str) -> TrackedRun | None:
        """Return a run; None if there is none with this id."""
        with self._reading():
            try:
                return _tracked(self._client.get_run(run_id))
            except MlflowException as error:
                if error.error_code == MISSING:
                    return None
                raise

    def children(self, parent: TrackedRun) -> list[TrackedRun]:
        """Return the runs that belong to a run, in the order in which they began."""
        return self._search([parent.experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.id}'")

    def experiment(self, name: str) -> list[TrackedRun] | None:
        """Return all runs of an experiment, in the order in which they began; None if there is no such experiment."""
        with self._reading():
            found = self._client.get_experiment_by_name(name)
        return None if found is None else self._search([found.experiment_id], "")

    def experiments(self) -> list[str]:
        """Return the names of all experiments."""
        with self._reading():
            return [each.name for each in self._client.search_experiments()]

    def _search(self, experiments: Sequence[str], condition: str) -> list[TrackedRun]:
        found: list[TrackedRun] = []
        token: str | None = None
        oldest_first = ["attributes.start_time ASC"]
        with self._reading():
            while True:
                page = self._client.search_runs(
                    list(experiments), condition, max_results=PAGE, order_by=oldest_first, page_token=token
                )
                found += [_tracked(run) for run in page]
                token = page.token
                if not token:
                    return found

    def artifacts(self, run_id: str) -> set[str]:
        """Return the names of a run's artifacts.

        Raises:
            SettingError: If the store cannot be read, or has no such run.
        """
        with self._reading(run_id):
            return {item.path for item in self._client.list_artifacts(run_id)}

    def download(self, run_id: str, name: str, folder: Path) -> None:
        """Copy an artifact of a run into a folder.

        Raises:
            SettingError: If the store cannot be read, or has no such run or artifact.
        """
        with self._reading(run_id):
            self._client.download_artifacts(run_id, name, str(folder))

    def history(self, run_id: str, key: str) -> dict[int, float]:
        """Return a metric by step."""
        with self._reading(run_id):
            return {point.step: float(point.value) for point in self._client.get_metric_history(run_id, key)}


def _tracked(run: Run) -> TrackedRun:
    info = run.info
    return TrackedRun(
        info.run_id, str(info.experiment_id), info.run_name, str(info.status), run.data.tags, run.data.params
    )
