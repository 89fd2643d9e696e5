"""Search settings on Ray Tune and give up the poor ones early: `python jobs/sweep.py CONFIG`."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysim.analysis.sweep import plan
from raysim.cli import compare
from raysim.cli import main as cli
from raysim.cli.arguments import PATH
from raysim.cli.run import mlflow_page
from raysim.config.metric import PrimaryMetric, metric_in
from raysim.core.errors import StoppedError
from raysim.core.log import info
from raysim.core.storage.defaults import folder_for
from raysim.terminal.console import quiet_option

if TYPE_CHECKING:
    from raysim.analysis.sweep.writer import SweepWriter

KEPT = "all results so far are kept, and `--resume` with the sweep's folder continues from there"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=PATH)
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change a setting of all trials.")
@click.option("--output", type=PATH, help="Folder for all files [runs/<experiment>-<time>].")
@click.option("--resume", type=PATH, metavar="FOLDER", help="Continue an interrupted sweep.")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
@quiet_option
def sweep(config: Path, overrides: tuple[str, ...], output: Path | None, resume: Path | None, as_json: bool) -> None:
    """Run the trials of the sweep in the file CONFIG, and print them side by side."""
    if output is not None and resume is not None:
        raise click.UsageError("--output and --resume exclude each other: a resumed sweep uses its own folder")
    planned = plan.load(config, overrides)

    with folder_for(resume or output, planned.base.experiment) as folder:
        try:
            _run(planned, folder.absolute(), resume is not None, as_json)
        except (KeyboardInterrupt, StoppedError):
            again = [part for each in overrides for part in ("--set", each)]
            command_again = shlex.join(["python", sys.argv[0], str(config), *again, "--resume", str(folder)])
            has_begun = (folder / plan.FILE).is_file()
            kept = f"all results so far are kept, `{command_again}` continues" if has_begun else "no trial has begun"
            raise StoppedError(f"interrupted; {kept}") from None


def _run(planned: plan.Sweep, folder: Path, resumes: bool, as_json: bool) -> None:
    info(planned.title)

    from raysim.analysis.sweep import run, writer  # Ray and MLflow take seconds to import, and bad input is refused

    digests = run.check(planned)
    with writer.opened(planned, folder, resumes) as written:
        try:
            run.run(written, digests)
        finally:
            is_hasty = isinstance(sys.exception(), KeyboardInterrupt)
            if not is_hasty and any(standing.value is not None for standing in written.journal.standings):
                show(written, as_json)


def show(written: "SweepWriter", as_json: bool) -> None:
    """Print the trials side by side, the best of them, and where to find all files."""
    from raysim.analysis.sweep import run

    content = run.content_of(written)
    if as_json:
        click.echo(json.dumps(content))
        return
    compared = run.table_of(written.folder)
    if compared is not None:
        compare.show(compared)
    best, (opens, page) = content["best"], mlflow_page(content)
    values = ", ".join(f"{name}={value}" for name, value in best["values"].items())
    found = f"trial {best['trial']}: {values} ({content['metric']} {best['value']:.4f}, round {best['rounds']})"
    lines = (
        *chosen_by(content),
        ("best", found),
        *test_figure(best, metric_in(content)),
        ("files in", written.folder),
        ("open in MLflow", opens),
        ("", f"then {page}"),
    )
    for label, value in lines:
        click.echo(f"{label:<18}{value}")


def chosen_by(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Return on which rows trials were compared, if on any of the server's."""
    rows = content["metric_is_of"]
    warned = "; data.validation_share takes rows to choose by" if rows == "test rows" else ""
    return [("compared by", f"{content['metric']}, of the {rows}{warned}")] if rows else []


def test_figure(best: dict[str, Any], metric: PrimaryMetric) -> list[tuple[str, str]]:
    """Return the test score of the best trial where it was not chosen by it."""
    name = metric.recorded("test_primary")
    return [(f"its test {metric.title}", metric.text(best[name]))] if name in best else []


if __name__ == "__main__":
    cli.command_line(command=sweep, kept=KEPT)
