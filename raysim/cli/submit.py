"""The command `raysim submit`: a run as a job on a Ray cluster."""

import json
import os
from pathlib import Path
from typing import Any

import click

from raysim.cli.arguments import PATH
from raysim.config import loader
from raysim.core import signals
from raysim.core.log import info, is_quiet, warning
from raysim.core.storage import uris
from raysim.terminal.console import quiet_option


@click.command(short_help="Run an experiment as a job on a Ray cluster.")
@click.argument("config", type=PATH)
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    required=True,
    help="The head's dashboard, http://HOST:8265.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change a setting, as `raysim run` does."
)
@click.option("--output", metavar="URI", help="Where the run's files go, as seen from the cluster.")
@click.option("--tracking-uri", metavar="URI", help="MLflow store, as seen from the cluster [MLFLOW_TRACKING_URI].")
@click.option(
    "--working-dir",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder to send along, for files and modules that CONFIG names [CONFIG alone].",
)
@click.option("--no-wait", is_flag=True, help="Print the job's id and exit; otherwise follow its log to the end.")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object, the run's own.")
@quiet_option
def submit(
    config: Path,
    address: str,
    overrides: tuple[str, ...],
    output: str | None,
    tracking_uri: str | None,
    folder: Path | None,
    no_wait: bool,
    as_json: bool,
) -> int:
    """Run the experiment in the file CONFIG as a job on a Ray cluster, and exit with the job's exit code.

    The cluster's machines need raysim. A token is read from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    """
    uris.check("--address", address, "http://HOST:8265; the token is read from RAY_AUTH_TOKEN")
    settings = loader.load(config, overrides)
    from raysim.executors.ray import jobs

    stores = {"tracking.uri": settings.tracking.uri, "--tracking-uri": tracking_uri, "--output": output}
    for name, uri in {"MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI"), **stores}.items():
        uris.check(name, uri or "", "a URI without; credentials belong into the environment of the cluster")

    if folder is None:
        observers = {f"tracking.also.{number}": name for number, name in enumerate(settings.tracking.also)}
        jobs.check_files(loader.flatten(settings) | observers)
    arguments = [part for override in overrides for part in ("--set", override)]
    arguments += ["--output", output] if output else []
    variables = {"MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", "")}
    if tracking_uri:
        arguments += ["--set", f"tracking.uri={tracking_uri}"]
    arguments += ["--json"] if as_json else []
    arguments += ["--quiet"] if is_quiet() else []
    given = {name: value for name, value in variables.items() if value}
    job = jobs.submit(jobs.Request(address, config, arguments, folder, given))
    if no_wait:
        click.echo(json.dumps({"job": job.id, "address": address}) if as_json else job.id)
        return 0
    return _follow(job, as_json)


def _follow(job: Any, as_json: bool) -> int:
    from raysim.executors.ray import jobs

    log: list[str] = []

    def write(text: str) -> None:
        log.append(text)
        click.echo(text, nl=False, err=as_json)

    info(f"job {job.id}: {job.commands()}")
    try:
        code = jobs.exit_code(job.follow(write))
    except KeyboardInterrupt:
        warning(f"raysim: job {job.id} continues: {job.commands()}")
        return signals.code_of_interrupt()
    if code:
        warning(f"raysim: job {job.id} failed")
    elif as_json:
        click.echo("".join(log).rstrip().rpartition("\n")[2])
    return code
