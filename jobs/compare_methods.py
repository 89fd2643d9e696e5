"""Compare methods over one split and several seeds: `python jobs/compare_methods.py CONFIG`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raysim.analysis.study import plan
from raysim.cli import main as cli
from raysim.cli.arguments import PATH
from raysim.cli.run import mlflow_page
from raysim.core.storage.defaults import folder_for
from raysim.terminal.console import quiet_option

if TYPE_CHECKING:
    from raysim.analysis.study.writer import ComparisonWriter

KEPT = "the runs that had finished are kept"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=PATH)
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change a setting of all rows.")
@click.option("--methods", metavar="A,B", help="Rows of the file to run [all].")
@click.option("--seeds", metavar="0,1,2", help="Seeds to run [the file's].")
@click.option("--output", type=PATH, help="Folder for all files [runs/<experiment>-<time>].")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
@quiet_option
def compare(
    config: Path,
    overrides: tuple[str, ...],
    methods: str | None,
    seeds: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Run the methods in the file CONFIG with every seed and print one table."""
    comparison = plan.load(config, overrides, methods, seeds)

    from raysim.analysis.study import run, writer  # MLflow takes seconds to import, and bad input is refused before

    with folder_for(output, comparison.base.experiment) as folder:
        written = writer.open_writer(comparison, folder.absolute())
        try:
            run.run(written)
        finally:
            if written.figures:
                show(written, as_json)


def show(written: "ComparisonWriter", as_json: bool) -> None:
    """Print the table and where to find it."""
    from raysim.analysis.study import table
    from raysim.analysis.tables import terminal

    if as_json:
        click.echo(json.dumps(written.content))
        return
    rows = written.rows
    is_dim = [not row["seeds"] for row in rows]
    terminal.show(written.title, table.columns_of(rows), is_dim, written.notes)
    command, page = mlflow_page(written.content)
    for label, value in (("files in", written.folder), ("open in MLflow", command), ("", f"then {page}")):
        click.echo(f"{label:<16}{value}")


if __name__ == "__main__":
    cli.command_line(command=compare, kept=KEPT)
