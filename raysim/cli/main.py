"""The command line: raysim run, resume, report, compare, submit, replay, devices, calibrate, probe, schema."""

import atexit
import json
import os
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from raysim.cli.compare import compare
from raysim.cli.submit import submit
from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core import signals
from raysim.core.errors import ReportLostError, RunFailedError, SettingError, StoppedError, TrackingLostError
from raysim.core.log import be_quiet, listening, say, warn
from raysim.core.signals import BAD_INPUT, FAILED, INTERRUPTED, TERMINATED
from raysim.core.storage.local import is_uri, storage_path
from raysim.core.storage.path import StoragePath
from raysim.terminal import console
from raysim.terminal.console import quiet_option

LAST_CHECKPOINT = "rounds that a checkpoint covers are kept, and `raysim resume` goes on after them"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raysim")
def cli() -> None:
    """Simulate federated learning on heterogeneous devices with pruned submodels."""


cli.add_command(submit)
cli.add_command(compare)


@cli.command(short_help="Run the experiment in the file CONFIG.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting, as in training.learning_rate=0.05; may be repeated.",
)
@click.option(
    "--output",
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
        _forecast(settings, as_json)
    else:
        _run(settings, output, as_json)


@cli.command(short_help="Go on with RUN, which was stopped.")
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
    """Go on with RUN, which was stopped, from its newest checkpoint: what comes out is the same to the bit.

    RUN is the output folder of a run, or its id in MLflow. A finished run is told again.
    """
    from raysim.experiment import resume as resuming

    started = time.monotonic()
    with resuming.locked_run(run, tracking_uri, overrides) as stopped:
        if stopped.is_finished:
            summary = stopped.summary or {}
        else:
            on_ray = stopped.settings if stopped.summary is None else None
            summary = _play(on_ray, stopped.folder, lambda: resuming.prepare(stopped), started)
    _show(summary, as_json)


def _forecast(settings: ExperimentSettings, as_json: bool) -> None:
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
    folder = storage_path(
        output or defaults.default_folder() / f"{settings.experiment}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    check_names(settings)
    observer.check_names(settings.tracking)
    if output is None and defaults.in_job():
        say(f"a job's own folder is deleted with it: the run's files go to {folder}")

    def prepare() -> Any:
        from raysim.experiment import run as experiment  # in a thread of its own: MLflow imports while Ray starts

        return experiment.prepare(settings, folder)

    _show(_play(settings, folder, prepare, started), as_json)


def _play(
    settings: ExperimentSettings | None, folder: StoragePath, prepare: Callable[[], Any], started: float
) -> dict[str, Any]:
    """Start the runner that settings ask for, if any, while the experiment is prepared; then run it."""
    preparing = ThreadPoolExecutor(1).submit(prepare)
    with _runner(settings, folder) as runner:
        prepared = preparing.result()
        from raysim.experiment import run as experiment

        summary: dict[str, Any] = experiment.run(prepared, runner, started)
    return summary


def _show(summary: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary))
        return
    for line in console.summary_lines(summary, *(mlflow_page(summary) if summary["run_id"] else ())):
        click.echo(line)


def mlflow_page(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Return the command that opens MLflow's pages, and the page of the run that a summary belongs to."""
    python = Path(sys.executable)
    command = f"{python.with_name('mlflow')} ui --backend-store-uri {shlex.quote(summary['tracking_uri'])}"
    return command, f"http://127.0.0.1:5000/#/experiments/{summary['experiment_id']}/runs/{summary['run_id']}"


def _runner(settings: ExperimentSettings | None, folder: StoragePath) -> Any:
    if settings is not None and settings.executor.kind == "ray":
        from raysim.executors.ray.runner import RayRunner

        executor = settings.executor
        return RayRunner(
            executor.num_actors, executor.address, settings.population.clients, executor.client_timeout_s,
            on_this_node=folder.path is not None, on_gpus=executor.device == "cuda",
            dashboard_host=executor.dashboard_host,
        )  # fmt: skip
    from raysim.executors.in_process import InProcessRunner

    return InProcessRunner()


@cli.command(short_help="Show simulated devices: a preset or a file.")
@click.argument("source", metavar="[PRESET|FILE]", required=False)
@click.option("--clients", type=click.IntRange(min=1), help="How many clients are dealt [10000; as a file says].")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of what is drawn [0].")
@click.option("--plot", type=click.Path(path_type=Path), help="Where the picture goes [devices-<PRESET|FILE>.png].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; a picture only with --plot.")
def devices(source: str | None, clients: int | None, seed: int, plot: Path | None, as_json: bool) -> None:
    """Show devices: a PRESET or a FILE; without either the presets are listed.

    FILE is a table (.csv, .parquet), FedScale's capacities (.pkl, .pickle, .json), or YAML with a population section.
    """
    from raysim.cli import devices as device_console
    from raysim.cli import devices as device_page

    if source is None:
        device_console.print_presets()
        return
    page = device_page.of(source, clients, seed)
    if plot is None and not as_json:
        plot = Path(f"devices-{Path(source).stem}.png")
    if plot is not None:
        page.draw(plot)
    if as_json:
        click.echo(json.dumps(page.as_json() | {"plot": None if plot is None else str(plot)}))
        return
    device_console.print_devices(page.title, page.summary, page.preset)
    click.echo(f"picture: {plot}")


@cli.command(short_help="Fit a device's constants to steps timed here.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--input-shape", metavar="C,H,W", help="Channels, height, width [3,32,32; 1,28,28 for lenet, cnn, mlp]."
)
@click.option("--classes", "num_classes", default=10, show_default=True, help="Number of classes.")
@click.option("--options", metavar="YAML", help="Options of the model, as in '{hidden: 64}'.")
@click.option("--batch-size", default=10, show_default=True, help="Rows of a training step, as in your experiment.")
@click.option("--repeats", default=12, show_default=True, help="Repeats of each width; the fastest counts.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the files [runs/calibration-<time>].")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
def calibrate(output: Path | None, as_json: bool, **request: Any) -> None:
    """Measure training steps of MODEL on this machine and fit a device's constants to them."""
    from raysim.calibration import report
    from raysim.calibration.run import Request, run
    from raysim.core.storage import defaults

    folder = output or defaults.default_folder() / f"calibration-{time.strftime('%Y%m%d-%H%M%S')}"
    calibrations = run(Request(**request), folder.absolute())
    for each in calibrations:
        console.print_calibration(report.table(each), report.summary_lines(each), report.tier_yaml(each))
    click.echo(f"files in {folder}")
    if as_json:
        click.echo(json.dumps(report.to_json(calibrations)))


@cli.command(short_help="Time RUN anew: other devices, another deadline.")
@click.argument("run")
@click.option("--devices", type=click.Path(path_type=Path), help="YAML file: a population section, or an experiment.")
@click.option("--deadline", type=float, metavar="SECONDS", help="End every round at this deadline.")
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store of a run id [MLFLOW_TRACKING_URI, or runs/mlflow.db]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(run: str, devices: Path | None, deadline: float | None, tracking_uri: str | None, as_json: bool) -> None:
    """Time the finished run RUN anew from its records: on other devices, with another deadline.

    RUN is the output folder of a run, or its id in MLflow. Nothing is trained; what records cannot tell is said.
    """
    from raysim.analysis.replay import run as replays
    from raysim.analysis.replay import source, summary

    recorded = source.read(run, tracking_uri)
    others = None if devices is None else replays.read_devices(devices, recorded)
    replayed = summary.summary_from(replays.replay(recorded, others, deadline))
    if as_json:
        click.echo(json.dumps(replayed))
    else:
        console.print_tables(summary.tables(replayed), summary.unknown_lines(replayed))


@cli.command(short_help="Write the report of RUN anew.")
@click.argument("run")
@click.option(
    "--output",
    metavar="FILE|URI",
    help="Where the page goes [report.html in the run's folder; for an id report-<id>.html here].",
)
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store of a run id [MLFLOW_TRACKING_URI, or runs/mlflow.db]."
)
@click.option(
    "--baseline", metavar="RUN", help="Run on the same data to compare with [what FedAvg would have taken]."
)
def report(run: str, output: str | None, tracking_uri: str | None, baseline: str | None) -> None:
    """Write the report of RUN anew: one HTML page with figures that opens anywhere.

    RUN is the output folder of a run, or its id in MLflow. Every run that ends writes its own; of one that is going
    on, or has failed, the rounds so far are told.
    """
    from raysim.report import write

    click.echo(f"report: {write.of_named(run, output, tracking_uri, baseline)}")


@cli.command(short_help="Recommend how many clients to train at once.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change a setting.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def probe(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Time the experiment in CONFIG with clients trained in packs of several sizes, and recommend `training.pack`."""
    from raysim.calibration.pack_probe import probe as timed
    from raysim.core.tensors import one_thread
    from raysim.simulation.build import build_scenario, check_names

    settings = loader.load(config, overrides)
    check_names(settings)
    scenario = build_scenario(settings)
    with one_thread():
        found = timed(scenario)
    if as_json:
        click.echo(json.dumps(found))
        return
    for size in found["sizes"]:
        click.echo(f"training.pack={size['pack']:<4} {size['clients_per_s']:>10,.0f} clients/s")
    click.echo(f"recommended here: training.pack={found['recommended']} (auto chooses {found['auto']})")


@cli.command(short_help="Print the JSON Schema of experiment files.")
def schema() -> None:
    """Print the JSON Schema of experiment files, for completion in editors."""
    click.echo(json.dumps(ExperimentSettings.model_json_schema(), indent=2))


def main(arguments: list[str] | None = None, command: click.Command = cli, kept: str = LAST_CHECKPOINT) -> None:
    """Run a command line and leave with its exit code: 0, 1 failed, 2 bad input, 130 interrupted, 143 terminated.

    Args:
        arguments: What was given; none = those of this process.
        command: The command they belong to.
        kept: What is kept when it is interrupted.
    """
    signals.listen()
    be_quiet(False)
    with listening():
        code = _code_of(command, arguments, kept)
    if code == TERMINATED or (code == INTERRUPTED and _are_threads_at_work()):  # Python would wait for all of them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def command_line(
    arguments: list[str] | None = None, command: click.Command = cli, kept: str = LAST_CHECKPOINT
) -> None:
    """Run a command line as all that this process is for: see `main`.

    Python would take apart all that was imported, hundreds of thousands of objects, for 2 to 4 seconds after the last
    line; this ends the process once its threads and what was registered for its exit are done.
    """
    code = FAILED

    def leave() -> None:
        with suppress(OSError, ValueError, AttributeError):  # streams that are closed, or that there are none of
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    atexit.register(leave)
    try:
        main(arguments, command, kept)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else FAILED if end.code else 0
        raise
    except KeyboardInterrupt:
        code = signals.code_of_interrupt()
        raise


def _code_of(command: click.Command, arguments: list[str] | None, kept: str) -> int:
    """Run a command line, say how it failed if it did, and return its exit code."""
    try:
        return int(command.main(args=arguments, standalone_mode=False) or 0)
    except SettingError as error:
        warn(f"raysim: {error}")
        return BAD_INPUT
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except RunFailedError as error:
        warn(f"{error.details}raysim: the run failed: {error}; {kept}")
        return FAILED
    except (ReportLostError, TrackingLostError) as error:
        warn(f"raysim: {error}")
        return FAILED
    except StoppedError as error:
        warn(f"raysim: {error}")
        return signals.code_of_interrupt()
    except (KeyboardInterrupt, click.Abort):
        warn(f"raysim: interrupted; {kept}")
        return signals.code_of_interrupt()
    except Exception as error:
        traceback.print_exc()
        warn(f"raysim: unexpected {type(error).__name__}: {error}")
        return FAILED


def _are_threads_at_work() -> bool:
    return any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
