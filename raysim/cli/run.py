"""The commands `raysim run` and `raysim resume`."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from raysim.cli.arguments import PATH, URI
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core.log import info
from raysim.core.storage.local import is_uri, storage_path
from raysim.core.storage.path import StoragePath
from raysim.terminal import console
from raysim.terminal.console import quiet_option


@click.command(short_help="Run the experiment in the file CONFIG.")
@click.argument("config", type=PATH)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting, as in training.learning_rate=0.05; may be repeated.",
)
@click.option(
    "--output",
    type=URI,
    metavar="FOLDER|URI",
    help="Where the run's files go, a path or s3://, gs:// and the like [runs/<experiment>-<time>].",
)
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
@click.option("--print-config", is_flag=True, help="Print the complete settings and stop.")
@click.option(
    "--dry-run", is_flag=True, help="Do everything but training: print population, budgets, predicted cost."
)
@quiet_option
def run(
    config: Path,
    overrides: tuple[str, ...],
    output: str | None,
    as_json: bool,
    print_config: bool,
    dry_run: bool,
) -> None:
    """Run the experiment in the file CONFIG."""
    settings = loader.load(config, overrides)
    if print_config:
        click.echo(loader.to_yaml(settings), nl=False)
    elif dry_run:
        _print_forecast(settings, as_json)
    else:
        _run(settings, output, as_json)


@click.command(short_help="Resume RUN, which was stopped.")
@click.argument("run")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change where it runs, as in executor.num_actors=1.",
)
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow store [that of the run; for an id MLFLOW_TRACKING_URI or the default].",
)
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
@quiet_option
def resume(run: str, overrides: tuple[str, ...], tracking_uri: str | None, as_json: bool) -> None:
    """Resume RUN, which was stopped, from its newest checkpoint; its results are the same to the bit.

    RUN is the output folder of a run, or its id in MLflow. For a finished run its summary is printed again.
    """
    from raysim.experiment import resume as resuming
    from raysim.tracking import observer

    started = time.monotonic()
    with resuming.locked_run(run, tracking_uri, overrides) as stopped:
        if stopped.is_finished:
            summary = stopped.summary or {}
        else:
            observer.check_names(stopped.settings.tracking)
            on_runner = stopped.settings if stopped.summary is None else None
            summary = _run_prepared(on_runner, stopped.folder, lambda: resuming.prepare(stopped), started)
    _print_summary(summary, as_json)


def _print_forecast(settings: ExperimentSettings, as_json: bool) -> None:
    from raysim.experiment.store import store_of
    from raysim.simulation.build import build_scenario, check_names
    from raysim.simulation.forecast import forecast
    from raysim.tracking import observer

    check_names(settings)
    observer.check_names(settings.tracking)
    store_of(settings.tracking.uri)
    predicted = {**forecast(build_scenario(settings)), "model": settings.model.name}
    if as_json:
        click.echo(json.dumps(predicted))
    else:
        console.print_forecast(predicted)


def _run(settings: ExperimentSettings, output: str | None, as_json: bool) -> None:
    from raysim.core.storage import defaults
    from raysim.simulation.build import check_names
    from raysim.tracking import observer

    started = time.monotonic()
    if output is not None and not is_uri(output):
        defaults.check_stays("--output", output, Path(output), "an absolute path or a URI, as s3://BUCKET/FOLDER")
    check_names(settings)
    observer.check_names(settings.tracking)
    with defaults.folder_for(output, settings.experiment) as given:
        folder = storage_path(given)
        if output is None and defaults.in_job():
            info(f"a job's own folder is deleted with it: the run's files go to {folder}")

        def prepare() -> Any:
            from raysim.experiment import run as experiment  # in a thread of its own: MLflow imports while Ray starts

            return experiment.prepare(settings, folder)

        summary = _run_prepared(settings, folder, prepare, started)
    _print_summary(summary, as_json)


def _run_prepared(
    settings: ExperimentSettings | None, folder: StoragePath, prepare: Callable[[], Any], started: float
) -> dict[str, Any]:
    """Run an experiment, which is prepared while its runner starts; settings are None where no round is left."""
    preparing = ThreadPoolExecutor(1).submit(prepare)
    with _runner(settings, folder) as runner:
        prepared = preparing.result()
        from raysim.experiment import run as experiment

        summary: dict[str, Any] = experiment.run(prepared, runner, started)
    return summary


def _print_summary(summary: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary))
        return
    for line in console.summary_lines(summary, *(mlflow_page(summary) if summary["run_id"] else ())):
        click.echo(line)


def mlflow_page(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Return the command that opens MLflow's pages, and the address of the page of a summary's run."""
    python = Path(sys.executable)
    command = f"{python.with_name('mlflow')} ui --backend-store-uri {shlex.quote(summary['tracking_uri'])}"
    return command, f"http://127.0.0.1:5000/#/experiments/{summary['experiment_id']}/runs/{summary['run_id']}"


def _runner(settings: ExperimentSettings | None, folder: StoragePath) -> Any:
    if settings is not None and settings.executor.kind == "ray":
        from raysim.executors.ray.runner import RayRunner

        executor = settings.executor
        return RayRunner(
            executor.num_actors,
            executor.address,
            settings.population.clients,
            executor.client_timeout_s,
            on_this_machine=folder.path is not None,
            on_gpus=executor.device == "cuda",
            dashboard_host=executor.dashboard_host,
        )
    from raysim.executors.in_process import InProcessRunner

    return InProcessRunner("cpu" if settings is None else settings.executor.device)
