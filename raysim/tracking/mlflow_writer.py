"""Write a run to MLflow, from the process that runs the command."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from raysim.core.errors import SettingError, TrackingLostError, reason_of
from raysim.core.storage import uris
from raysim.core.storage.defaults import check_stays, default_folder
from raysim.core.storage.expansion import expanded_text
from raysim.core.storage.local import AnyPath, storage_path
from raysim.simulation import metrics
from raysim.simulation.records import Logged, Point
from raysim.simulation.state import RoundReport
from raysim.tracking import mlflow_store
from raysim.tracking.curves import EVERY_SECOND, POINTS_PER_CALL, LoggedSoFar, over_time
from raysim.tracking.mlflow_store import DATABASES, sqlite_file, sqlite_uri

POSTGRESQL_DRIVERS = ("psycopg2", "psycopg")
SERVERS = ("http", "https", "databricks")
WITHOUT = (
    "a URI without; the credentials of a server in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, those of a "
    "database in a file that its driver reads, as ~/.pgpass"
)
PARAMS_PER_CALL = 100
CLIENT = "client"
"""Tag of the run of a single client; its value is the client's id."""
KEY = "run_key"
"""Tag of a run with the key that its folder has had since before it was created."""
TIME_OF_RUN = "clock/wall_s"
"""A metric of every round: its last step is the last round that was logged."""


def resolve_uri(uri: str | None, *others: str) -> str:
    """Return the tracking URI to use, with an absolute path if it is an SQLite file.

    Args:
        uri: The value of `tracking.uri`; None: MLFLOW_TRACKING_URI if set, else the default store.
        others: Values that are allowed besides, for the message.

    Raises:
        SettingError: If MLflow cannot keep a run there, or the URI holds a secret.
    """
    given = uri or os.environ.get("MLFLOW_TRACKING_URI")
    given = None if given is None else expanded_text("tracking.uri", given)
    uri = given or f"sqlite:///{default_folder() / 'mlflow.db'}"
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in DATABASES + SERVERS:
        allowed = ", ".join(("sqlite:///FILE", "postgresql://...", "http://...", "https://...", *others))
        raise SettingError(f"tracking.uri={uris.masked(uri)!r} is not allowed; allowed: {allowed}")
    uris.check("tracking.uri", uri, WITHOUT)
    file = sqlite_file(uri)
    if file is None:
        return _with_driver(uri)
    check_stays("tracking.uri", uri, file, "an absolute file, or a server as MLFLOW_TRACKING_URI=http://HOST:5000")
    return sqlite_uri(file.absolute(), uri.partition("?")[2])


def _with_driver(uri: str) -> str:
    """Name an installed driver in the URI of a PostgreSQL; SQLAlchemy's versions differ in the one they assume."""
    scheme, _, rest = uri.partition(":")
    if scheme != "postgresql":
        return uri
    found = next((driver for driver in POSTGRESQL_DRIVERS if find_spec(driver)), None)
    if found is None:
        raise SettingError(
            f"tracking.uri={uri!r} needs a driver of PostgreSQL's, and {' or '.join(POSTGRESQL_DRIVERS)} is not "
            "installed; `pip install 'raysim[server]'`"
        )
    return f"{scheme}+{found}:{rest}"


class MlflowWriter:
    """Writes one run to an MLflow store.

    Its methods raise TrackingLostError if the store does not accept a call, and OSError if a file cannot be read.

    Attributes:
        uri: Where MLflow keeps its runs.
        client: MLflow's client of this store.
        experiment_id: The id of the MLflow experiment.
        run_id: The id of the run; empty before it is created or found.
    """

    def __init__(self, uri: str, experiment: str, parent: str = "", beside: str = "") -> None:
        """Open the store, creating an SQLite file where there is none.

        Args:
            uri: Where MLflow keeps its runs.
            experiment: Name of the MLflow experiment.
            parent: The id of the parent run, if there is one.
            beside: The folder for artifacts of a new experiment whose store is a database on a server. An SQLite file
                has them beside it, and a tracking server decides itself.

        Raises:
            SettingError: If the store cannot be opened.
        """
        self.uri = uri
        self._file = sqlite_file(uri)
        try:
            self.client, self.experiment_id = mlflow_store.open_to_write(
                uri, lambda client: self._experiment(client, experiment, beside)
            )
        except SettingError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or reason_of(error)
            raise SettingError(f"tracking.uri={uri!r} cannot be opened: {reason}") from None
        self.run_id, self._parent = "", parent
        self._start_time: int | None = None

    def _experiment(self, client: MlflowClient, name: str, beside: str) -> str:
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise SettingError(
                f"experiment={name!r} was deleted in MLflow; allowed: another name, or this one after `mlflow "
                f"experiments restore --experiment-id {found.experiment_id}`"
            )
        if found is not None:
            return str(found.experiment_id)
        in_database = beside and mlflow_store.is_database(self.uri)
        location = f"{beside.partition('?')[0]}/artifacts/{name}" if in_database else None
        if self._file is not None:
            location = str(self._file.parent / "artifacts" / name)
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment(client, name, beside)  # another run has created it meanwhile

    def start(
        self,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        digests: Mapping[str, str],
        start_time: int | None = None,
    ) -> str:
        """Create the run and describe it; return its id.

        Args:
            name: Name shown in the UI.
            params: The flattened settings.
            tags: Method, data set and the like.
            digests: `data` and `partition`.
            start_time: When it began, in milliseconds; None: now.
        """
        self.create(name, tags, start_time)
        self.describe(params, digests)
        return self.run_id

    def create(self, name: str, tags: Mapping[str, str], start_time: int | None = None, key: str = "") -> None:
        """Create the run and set `run_id`.

        Args:
            name: Name shown in the UI.
            tags: By name.
            start_time: When it began, in milliseconds; None: now.
            key: Identifies the run before it has an id. A run that was created with it is ended as KILLED: its
                process was killed before it could write the id down.
        """
        own = {MLFLOW_PARENT_RUN_ID: self._parent} if self._parent else {}
        own |= {KEY: key} if key else {}
        with as_tracking_lost():
            lost = f"tags.{KEY} = '{key}' and attributes.status = 'RUNNING'"
            for run in self.client.search_runs([self.experiment_id], lost) if key else ():
                self.end("KILLED", run_id=run.info.run_id)
            run = self.client.create_run(self.experiment_id, start_time, own | dict(tags), run_name=name)
        self.run_id = run.info.run_id

    def describe(
        self, params: Mapping[str, str], digests: Mapping[str, str], inputs: Sequence[DatasetInput] = ()
    ) -> None:
        """Log settings and data, as far as the run does not have them already.

        Args:
            params: The flattened settings.
            digests: `data` and `partition`.
            inputs: The data sets; without any, one is logged that has the name in the tag `data` and nothing else.
        """
        with as_tracking_lost():
            run = self.client.get_run(self.run_id)
            entries = [Param(key, value) for key, value in params.items() if key not in run.data.params]
            for start in range(0, len(entries), PARAMS_PER_CALL):
                self.client.log_batch(self.run_id, params=entries[start : start + PARAMS_PER_CALL])
            if run.inputs is None or not run.inputs.dataset_inputs:
                partition = f'{{"partition": "{digests["partition"]}"}}'
                alone = DatasetInput(Dataset(run.data.tags["data"], digests["data"][:36], "raysim", partition))
                self.client.log_inputs(self.run_id, list(inputs) or [alone])
            tags = {f"{what}_sha256": digest for what, digest in digests.items()}
            self.tag({name: digest for name, digest in tags.items() if name not in run.data.tags})

    def find(self, run_id: str) -> LoggedSoFar:
        """Write to an existing run from now on; return how much of it MLflow has.

        Raises:
            SettingError: If the store has no such run.
        """
        try:
            run = self.client.get_run(run_id)
            rounds = self.client.get_metric_history(run_id, TIME_OF_RUN)
            seconds = self.client.get_metric_history(run_id, EVERY_SECOND)
        except Exception as error:
            raise SettingError(
                f"tracking.uri={self.uri!r}: run {run_id} cannot be resumed: {reason_of(error)}"
            ) from None
        self.run_id, self.experiment_id = run_id, str(run.info.experiment_id)
        round, wall_s = max(((point.step, point.value) for point in rounds), default=(0, 0.0))
        return LoggedSoFar(round, wall_s, max((point.step for point in seconds), default=-1))

    def reopen(self, run_id: str = "") -> None:
        """Mark this run, or one of its children, as running again and not failed."""
        run_id = run_id or self.run_id
        with as_tracking_lost():
            self.client.update_run(run_id, status="RUNNING")
            if "failure" in self.client.get_run(run_id).data.tags:
                self.client.delete_tag(run_id, "failure")

    def track(self, reports: Sequence[RoundReport], without: frozenset[str]) -> None:
        """Log all rounds of a run that is over, each stamped with the time at which it ended.

        Args:
            reports: The reports of its rounds, in their order.
            without: Metrics that are not logged.
        """
        rounds = [
            Logged(
                each.round,
                each.timestamp_ms,
                each.wall_s,
                metrics.for_mlflow(metrics.metrics_of(each), without),
            )
            for each in reports
        ]
        over, newest = over_time([], rounds)
        points = [point for each in rounds for point in each.points] + over + newest
        self._log_all(points)

    def measure(self, numbers: Mapping[str, float]) -> None:
        """Log numbers of the whole run, which belong to no round."""
        now = int(time.time() * 1000)
        self._log_all([Point(key, value, now, 0) for key, value in numbers.items()])

    def _log_all(self, points: Sequence[Point]) -> None:
        for start in range(0, len(points), POINTS_PER_CALL):
            self.log(points[start : start + POINTS_PER_CALL])

    def log(self, points: Sequence[Point], run_id: str = "") -> None:
        """Log up to 1,000 points in one call, all or none of them.

        Args:
            points: The points; MLflow drops those that the run has already.
            run_id: The id of a client's run; empty: this run.
        """
        with as_tracking_lost():
            self.client.log_batch(run_id or self.run_id, [Metric(*point) for point in points])

    def child(self, name: str, tags: Mapping[str, str]) -> str:
        """Create a child run that began at the same time; return its id."""
        with as_tracking_lost():
            if self._start_time is None:
                self._start_time = self.client.get_run(self.run_id).info.start_time
            tags = {MLFLOW_PARENT_RUN_ID: self.run_id, **tags}
            run = self.client.create_run(self.experiment_id, self._start_time, tags, run_name=name)
        return str(run.info.run_id)

    def clients(self) -> dict[int, str]:
        """Return the ids of the runs of single clients below this one, by client."""
        wanted = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'"
        with as_tracking_lost():
            found = self.client.search_runs([self.experiment_id], wanted, max_results=1000)
        return {int(run.data.tags[CLIENT]): run.info.run_id for run in found if CLIENT in run.data.tags}

    def last_step(self, run_id: str, key: str) -> int:
        """Return the last step of a curve, 0 if it has no points."""
        with as_tracking_lost():
            points = self.client.get_metric_history(run_id, key)
        return max((point.step for point in points), default=0)

    def artifact(self, given: AnyPath) -> None:
        """Upload a file into the run's artifacts."""
        with storage_path(given).fetched() as path:
            path.stat()  # a missing file is not MLflow's fault
            with as_tracking_lost():
                self.client.log_artifact(self.run_id, str(path))

    def note(self, key: str, text: str) -> None:
        """Set a tag."""
        self.tag({key: text[:5000]})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        if tags:
            with as_tracking_lost():
                self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def end(self, status: str, end_time: int | None = None, run_id: str = "") -> None:
        """Mark a run FINISHED, FAILED or KILLED.

        Args:
            status: One of these.
            end_time: When it ended, in milliseconds; None: now.
            run_id: The id of a client's run; empty: this run.
        """
        with as_tracking_lost():
            self.client.set_terminated(run_id or self.run_id, status, end_time or int(time.time() * 1000))


@contextmanager
def as_tracking_lost() -> Iterator[None]:
    """Raise all errors of a store as TrackingLostError: MLflow's stores raise those of many libraries."""
    try:
        yield
    except Exception as error:
        raise TrackingLostError(reason_of(error)) from error
