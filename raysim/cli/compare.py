"""The command `raysim compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raysim.cli.arguments import PATH
from raysim.core.storage import defaults
from raysim.terminal.console import quiet_option

if TYPE_CHECKING:
    from raysim.analysis.comparison.compare import Compared


@click.command(short_help="Compare runs: a table and a report.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow store of ids and experiments [MLFLOW_TRACKING_URI, or runs/mlflow.db].",
)
@click.option("--baseline", metavar="ROW", help="Row that the others are compared with [fedavg, or the first].")
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=float,
    metavar="VALUE",
    help="Primary metric to show the cost of, as accuracy 0.8; may be repeated [evaluation.targets, or 95 % of the "
    "baseline's].",
)
@click.option("--output", type=PATH, help="Folder for all files [runs/compare-<time>].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def compare(
    runs: tuple[str, ...],
    tracking_uri: str | None,
    baseline: str | None,
    targets: tuple[float, ...],
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare RUNs: one table, and a report with Pareto fronts and curves.

    RUN is the output folder of a run, a comparison or a sweep; the id of a run in MLflow, or of the parent run of a
    comparison or a sweep; or an MLflow experiment, as experiment:NAME. Runs that differ only in their seed are a row.
    """
    from raysim.analysis.comparison import compare as comparing  # its imports take seconds

    compared = comparing.compare(runs, tracking_uri, baseline, targets)
    with defaults.folder_for(output, "compare") as given:
        folder = given.absolute()
        comparing.write(compared, folder)
    if as_json:
        click.echo(json.dumps(compared.content() | {"output_dir": str(folder)}))
        return
    show(compared)
    click.echo(f"report          {folder / 'compare.html'}")
    click.echo("table           compare.md, compare.csv, compare.tex and compare.json beside it")


def show(compared: "Compared") -> None:
    """Print the table, in parts where the terminal is too narrow, and its notes."""
    from raysim.analysis.tables import terminal

    is_dim = [not row["is_whole"] for row in compared.table]
    terminal.show(compared.title, compared.columns, is_dim, compared.notes)
