"""Log an experiment to MLflow besides its files: name, tags, description, settings, data and metrics."""

from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core import provenance
from raysim.core.log import info
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.population import population
from raysim.simulation import metrics, records
from raysim.simulation.scenario import Scenario
from raysim.tracking import client_runs, datasets, description
from raysim.tracking.background import MetricStream
from raysim.tracking.client_runs import ClientRuns
from raysim.tracking.curves import LoggedSoFar, RunCurves, main_of
from raysim.tracking.mlflow_writer import MlflowWriter


def tags_of(settings: ExperimentSettings) -> dict[str, str]:
    """Return the tags by which runs are searched: the main settings, and where the code comes from."""
    main = {
        "method": settings.method.name,
        "data": settings.data.name,
        "model": settings.model.name,
        "devices": description.devices_of(settings),
        "seed": str(settings.seed),
    }
    return main | provenance.tags()


def create(
    tracker: MlflowWriter,
    settings: ExperimentSettings,
    scenario: Scenario,
    folder: StoragePath,
    environment: dict[str, str],
    key: str = "",
) -> None:
    """Create the MLflow run.

    Args:
        tracker: Writes it.
        settings: The experiment.
        scenario: Its population, model, method and costs.
        folder: Its files.
        environment: Versions and type of CPU, on which equal bits depend.
        key: Identifies the run before it has an id.
    """
    workload = scenario.workload
    name = f"{settings.method.name} {settings.data.name} seed {settings.seed}"
    tags = tags_of(settings) | {description.TAG: description.before(settings, scenario, str(folder))}
    leftover = population.leftover_rows(workload.population, scenario.num_divided)
    if leftover is not None:
        tags["leftover_rows"] = str(leftover)
    tracker.create(name, tags | environment, key=key)


def describe(
    tracker: MlflowWriter, settings: ExperimentSettings, scenario: Scenario, digests: dict[str, str]
) -> None:
    """Log settings and data, as far as the run does not have them already."""
    inputs = datasets.inputs_of(scenario.workload.data, settings.data.root)
    tracker.describe(loader.flatten(settings), digests, inputs)


def streams_of(
    tracker: MlflowWriter, settings: ExperimentSettings, scenario: Scenario, folder: StoragePath, logged: LoggedSoFar
) -> list[MetricStream]:
    """Return the metrics that grow by rounds: those of the run, and those of single clients if they have runs."""
    rounds, without = folder / "rounds", metrics.left_out_of(scenario)
    main = main_of(scenario.primary.name)
    streams: list[MetricStream] = [
        RunCurves(
            lambda round: records.logged(rounds, round, without), tracker.log, logged.round, logged.second, main
        )
    ]
    if settings.tracking.client_runs:
        streams.append(of_clients(tracker, settings, scenario, folder))
    return streams


def of_clients(
    tracker: MlflowWriter, settings: ExperimentSettings, scenario: Scenario, folder: StoragePath
) -> ClientRuns:
    """Return the runs of single clients, with metrics from the records in a folder."""
    clients, most, primary = scenario.workload.population, client_runs.MOST, scenario.primary.name
    if len(clients) > most:
        info(f"tracking.client_runs: the first {most} of {len(clients)} clients have runs of their own")

    def read(round: int) -> tuple[int, Columns]:
        (ended_ms,) = records.read_round(folder / "rounds", round, ("timestamp_ms",))["timestamp_ms"]
        return int(ended_ms), records.read_round(folder / "clients", round, client_runs.read_of(primary))

    return ClientRuns(
        tracker, read, client_runs.of_population(clients, tags_of(settings)), client_runs.curves_of(primary)
    )
