"""The command `raysim replay`."""

import json
from pathlib import Path

import click

from raysim.cli.arguments import PATH
from raysim.terminal import console


@click.command(short_help="Time RUN again: other devices, another deadline.")
@click.argument("run")
@click.option("--devices", type=PATH, help="YAML file: a population section, or an experiment.")
@click.option("--deadline", type=float, metavar="SECONDS", help="End every round at this deadline.")
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store of a run id [MLFLOW_TRACKING_URI, or runs/mlflow.db]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(run: str, devices: Path | None, deadline: float | None, tracking_uri: str | None, as_json: bool) -> None:
    """Time the finished run RUN again from its records: on other devices, with another deadline.

    RUN is the output folder of a run, or its id in MLflow. Nothing is trained; figures that the records cannot give
    are marked as not known.
    """
    from raysim.analysis.replay import finished_run, summary
    from raysim.analysis.replay import run as replays

    recorded = finished_run.read(run, tracking_uri)
    others = None if devices is None else replays.read_devices(devices, recorded)
    replayed = summary.summary_from(replays.replay(recorded, others, deadline))
    if as_json:
        click.echo(json.dumps(replayed))
    else:
        console.print_tables(summary.tables(replayed), summary.unknown_lines(replayed))
