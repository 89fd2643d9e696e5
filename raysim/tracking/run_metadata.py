"""What MLflow is told of an experiment: its tags and description, and the curves that grow by rounds."""

from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core import provenance
from raysim.core.log import say
from raysim.core.storage.path import StoragePath
from raysim.core.tensors import Columns
from raysim.population import population
from raysim.simulation import metrics, records
from raysim.simulation.scenario import Scenario
from raysim.tracking import client_runs, datasets, description
from raysim.tracking.background import MetricStream
from raysim.tracking.client_runs import ClientRuns
from raysim.tracking.curves import LoggedSoFar, RunCurves
from raysim.tracking.mlflow_writer import MlflowWriter


def tags_of(settings: ExperimentSettings) -> dict[str, str]:
    """Return what runs are looked for by: what was asked for, and where it comes from."""
    asked = {
        "method": settings.method.name,
        "data": settings.data.name,
        "model": settings.model.name,
        "devices": description.devices_of(settings),
        "seed": str(settings.seed),
    }
    return asked | provenance.tags()


def create(
    tracker: MlflowWriter,
    settings: ExperimentSettings,
    scenario: Scenario,
    folder: StoragePath,
    versions: dict[str, str],
) -> None:
    """Create the MLflow run.

    Args:
        tracker: Writes it.
        settings: The experiment.
        scenario: What is played.
        folder: Where its files go.
        versions: What equal bits depend on beyond the settings.
    """
    workload = scenario.workload
    name = f"{settings.method.name} {settings.data.name} seed {settings.seed}"
    tags = tags_of(settings) | {description.TAG: description.before(settings, scenario, str(folder))}
    leftover = population.leftover_rows(workload.population, len(workload.data.train_labels))
    if leftover is not None:
        tags["leftover_rows"] = str(leftover)
    tracker.create(name, tags | versions)


def describe(
    tracker: MlflowWriter, settings: ExperimentSettings, scenario: Scenario, digests: dict[str, str]
) -> None:  # fmt: skip
    """Log settings and data; what the run has of it already is left as it is."""
    inputs = datasets.inputs_of(scenario.workload.data, settings.data.root)
    tracker.describe(loader.flatten(settings), digests, inputs)


def curves_of(
    tracker: MlflowWriter, settings: ExperimentSettings, scenario: Scenario, folder: StoragePath, known: LoggedSoFar
) -> list[MetricStream]:  # fmt: skip
    """Return what grows by rounds: the run's curves, and those of its clients where they are asked for."""
    rounds, devices = folder / "rounds", scenario.workload.population.devices
    without = metrics.left_out(devices, settings.diagnostics.every is not None)
    curves: list[MetricStream] = [
        RunCurves(lambda round: records.logged(rounds, round, without), tracker.log, known.round, known.second)
    ]
    if settings.tracking.client_runs:
        curves.append(of_clients(tracker, settings, scenario, folder))
    return curves


def of_clients(
    tracker: MlflowWriter, settings: ExperimentSettings, scenario: Scenario, folder: StoragePath
) -> ClientRuns:  # fmt: skip
    """Return the runs of single clients, which are told of the rounds recorded in a folder."""
    clients, most = scenario.workload.population, client_runs.MOST
    if len(clients) > most:
        say(f"tracking.client_runs: the first {most} of {len(clients)} clients have runs of their own")

    def read(round: int) -> tuple[int, Columns]:
        (ended_ms,) = records.read(records.path_of(folder / "rounds", round), ("timestamp_ms",))["timestamp_ms"]
        return int(ended_ms), records.read(records.path_of(folder / "clients", round), client_runs.READ)

    return ClientRuns(tracker, read, client_runs.of_population(clients, tags_of(settings)))
