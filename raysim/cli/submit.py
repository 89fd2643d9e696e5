"""The command `raysim submit`: a run as a job on a Ray cluster."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import click

from raysim.cli.arguments import PATH
from raysim.config import loader
from raysim.core import signals
from raysim.core.errors import SettingError
from raysim.core.log import info, is_quiet, warning
from raysim.core.storage import uris
from raysim.core.storage.expansion import expanded_text
from raysim.terminal.console import quiet_option

STUDY = "study.yaml"


@click.command(short_help="Run an experiment or a study as a job on a Ray cluster.")
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
@click.option("--cells", metavar="A,B", help="Cells of a study to run [all].")
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
    cells: str | None,
) -> int:
    """Run the experiment in the file CONFIG as a job on a Ray cluster, and exit with the job's exit code.

    The cluster's machines need raysim. A token is read from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    CONFIG may be the folder of a study: its results and pages go to --output, a folder that outlives the job.
    """
    uris.check("--address", address, "http://HOST:8265; the token is read from RAY_AUTH_TOKEN")
    command: Literal["run", "study"] = "study" if (config / STUDY).is_file() else "run"
    if command == "study":
        arguments = _of_study(config, cells, overrides, output, tracking_uri, folder, as_json)
    else:
        arguments = _of_run(config, cells, overrides, output, tracking_uri, folder)
    arguments += ["--set", f"tracking.uri={tracking_uri}"] if tracking_uri else []
    arguments += ["--json"] if as_json else []
    arguments += ["--quiet"] if is_quiet() else []
    variables = {"MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", "")}
    given = {name: value for name, value in variables.items() if value}
    from raysim.executors.ray import jobs

    sent = config if command == "study" and folder is None else folder
    job = jobs.submit(jobs.Request(address, command, config, arguments, sent, given))
    if no_wait:
        click.echo(json.dumps({"job": job.id, "address": address}) if as_json else job.id)
        return 0
    return _follow(job, as_json)


def _of_run(
    config: Path,
    cells: str | None,
    overrides: tuple[str, ...],
    output: str | None,
    tracking_uri: str | None,
    folder: Path | None,
) -> list[str]:
    """Check an experiment, and return the arguments of `raysim run` after its file."""
    if cells is not None:
        raise SettingError(f"--cells={cells!r} is not allowed with CONFIG={str(config)!r}; allowed: with a study")
    settings = loader.load(config, overrides)
    _check_stores(settings.tracking.uri, tracking_uri, output)
    if folder is None:
        from raysim.executors.ray import jobs

        observers = {f"tracking.also.{number}": name for number, name in enumerate(settings.tracking.also)}
        jobs.check_files(loader.flatten(settings) | observers)
    return [*_set(overrides), *(["--output", output] if output else [])]


def _of_study(
    config: Path,
    cells: str | None,
    overrides: tuple[str, ...],
    output: str | None,
    tracking_uri: str | None,
    folder: Path | None,
    as_json: bool,
) -> list[str]:
    """Check a study, and return the arguments of `raysim study` after its folder.

    Raises:
        SettingError: If its results would be lost with the job, or it names files that are not sent.
    """
    from raysim.analysis.study import cells as studies
    from raysim.cli.study import chosen_cells
    from raysim.executors.ray import jobs

    if as_json:
        raise SettingError("--json is not allowed with a study; allowed: its results in --output")
    if output is None or not Path(output).is_absolute():
        given = "nothing" if output is None else repr(output)
        raise SettingError(
            f"--output={given} is not allowed with a study, whose results have to outlive the job; "
            "allowed: an absolute path that the cluster's machines share"
        )
    _check_stores(None, tracking_uri, output)
    loaded = studies.load(config)
    for name in chosen_cells(loaded, cells):
        comparison = loaded.unlent(name, overrides)
        for run in (*comparison.runs, *comparison.trials):
            _check_stores(run.settings.tracking.uri, tracking_uri, output)
            if folder is None:
                jobs.check_files(loader.flatten(run.settings))
    sent = config if folder is None else folder
    _check_bases(config / STUDY, sent, [cell["base"] for cell in loader.read_yaml(config / STUDY)["cells"].values()])
    where = ["--results", f"{output}/{config.resolve().name}.jsonl", "--output", f"{output}/runs"]
    return [*where, *(["--cells", cells] if cells else []), *_set(("executor.kind=ray", *overrides))]


def _check_bases(file: Path, folder: Path, bases: Iterable[Any]) -> None:
    """Refuse files that build on a file outside the folder that is sent."""
    for base in bases:
        path = file.parent / expanded_text("base", str(base))
        if Path(str(base)).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
            raise SettingError(
                f"base={str(base)!r} in {file} is not in the folder that is sent, {folder}; "
                "allowed: --working-dir=FOLDER to send a folder along that has both, and a path relative to the file"
            )
        _check_bases(path, folder, [own] if (own := loader.read_yaml(path).get("base")) else [])


def _set(overrides: tuple[str, ...]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def _check_stores(own: str | None, tracking_uri: str | None, output: str | None) -> None:
    """Refuse URIs with credentials: they would stand in the job's command line."""
    stores = {
        "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI"), "tracking.uri": own,
        "--tracking-uri": tracking_uri, "--output": output,
    }  # fmt: skip
    for name, uri in stores.items():
        uris.check(name, uri or "", "a URI without; credentials belong into the environment of the cluster")


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
