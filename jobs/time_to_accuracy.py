"""Draw accuracy against seconds, bytes and joules in every clock mode: `python jobs/time_to_accuracy.py CONFIG`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from overrides import as_overrides

from raysim.cli import main as cli
from raysim.cli.arguments import PATH
from raysim.config import loader
from raysim.config.settings import FiniteFloat, PathText, Settings
from raysim.core.errors import SettingError
from raysim.core.log import info
from raysim.core.storage import atomic
from raysim.core.storage.defaults import folder_for
from raysim.terminal.console import quiet_option

if TYPE_CHECKING:
    from raysim.analysis.comparison.curves import Curve

KEPT = "the runs that had finished are kept"


class TimeToAccuracySettings(Settings):
    """One figure: the same comparison of methods in several clock modes."""

    comparison: PathText
    """Path of a comparison file, relative to this one, as of `compare_methods.py`."""
    title: str = "What accuracy costs"
    """Above the figure."""
    target: FiniteFloat
    """Value of the primary metric, such as the test accuracy in (0, 1], whose cost is reported."""
    modes: dict[str, dict[str, Any]]
    """Settings of each row of the figure, by its name: `{deadline: {clock.mode: deadline, clock.deadline_s: 60}}`."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=PATH)
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change a setting of all runs.")
@click.option("--output", type=PATH, help="Folder for all files [runs/time-to-accuracy-<time>].")
@click.option("--draw-only", is_flag=True, help="Draw what an earlier call has left in --output.")
@quiet_option
def time_to_accuracy(config: Path, overrides: tuple[str, ...], output: Path | None, draw_only: bool) -> None:
    """Run the comparison in the file CONFIG in each of its clock modes and draw what accuracy costs."""
    settings = loader.validated(loader.read_yaml(config), TimeToAccuracySettings)
    comparison = config.parent / settings.comparison
    with folder_for(output, "time-to-accuracy") as given:
        folder = given.absolute()
        curves = {
            mode: curves_of(folder / mode, comparison, (*as_overrides(changes), *overrides), draw_only)
            for mode, changes in settings.modes.items()
        }
        write(folder, curves, settings)


def curves_of(folder: Path, comparison: Path, overrides: tuple[str, ...], draw_only: bool) -> "dict[str, Curve]":
    """Run one mode unless it is there already, and return a curve per method."""
    from raysim.analysis.comparison import curves
    from raysim.analysis.study import plan, run, writer

    planned = plan.load(comparison, overrides)
    if not draw_only:
        run.run(writer.open_writer(planned, folder))
    runs = {each.label: folder / "runs" / each.folder_name / "rounds.parquet" for each in planned.runs}
    missing = [path for path in runs.values() if not path.is_file()]
    if missing:
        raise SettingError(f"--output={str(folder.parent)!r} does not hold {missing[0].relative_to(folder.parent)}")
    return {label: curves.read(path, planned.primary) for label, path in runs.items()}


def write(folder: Path, by_mode: "dict[str, dict[str, Curve]]", settings: TimeToAccuracySettings) -> None:
    """Write figure and table."""
    from raysim.analysis.comparison import cost_figure

    target = settings.target
    rows = cost_figure.target_rows(by_mode, target)
    figure = cost_figure.draw(folder / "time_to_accuracy.png", by_mode, settings.title, target)
    metric = next(curve.metric for by_method in by_mode.values() for curve in by_method.values())
    text = cost_figure.markdown(rows, target, metric)
    table = atomic.write_text(folder / "time_to_accuracy.md", text)
    click.echo(text, nl=False)
    info(f"figure in {figure}, table in {table}")


if __name__ == "__main__":
    cli.command_line(command=time_to_accuracy, kept=KEPT)
