"""The command `raysim schema`."""

import json

import click

from raysim.config.experiment import ExperimentSettings


@click.command(short_help="Print the JSON Schema of experiment files.")
def schema() -> None:
    """Print the JSON Schema of experiment files, for completion in editors."""
    click.echo(json.dumps(ExperimentSettings.model_json_schema(), indent=2))
