"""The command `raysim study`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from raysim.cli.arguments import PATH
from raysim.core.errors import RunFailedError, SettingError, nearest_first
from raysim.core.log import info
from raysim.core.storage import atomic
from raysim.core.storage.defaults import folder_for, new_folder
from raysim.terminal.console import quiet_option

if TYPE_CHECKING:
    from raysim.analysis.study.cells import Study

SHARED = ("executor", "tracking", "checkpoint", "data.root")
"""Settings that decide where a study runs and what it leaves, not its results."""


@click.command(short_help="Run a study: many comparisons, resumable run by run.")
@click.argument("folder", metavar="STUDY", type=PATH)
@click.option("--cells", metavar="A,B", help="Cells to run [all].")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change a setting of all rows.")
@click.option("--results", type=PATH, help="File of the results [STUDY/results.jsonl].")
@click.option("--output", type=PATH, help="Folder for all files of the runs [runs/<study>-<time>].")
@click.option("--page", "only_page", is_flag=True, help="Only write the page and the figure from the results.")
@quiet_option
def study(
    folder: Path,
    cells: str | None,
    overrides: tuple[str, ...],
    results: Path | None,
    output: Path | None,
    only_page: bool,
) -> None:
    """Run the comparisons in STUDY/study.yaml, and write STUDY/README.md with their tables and figure.

    Runs that are in the results file with the same settings are not repeated. The page and figure of another results
    file are beside it, under its name.
    """
    from raysim.analysis.study import cells as studies
    from raysim.analysis.study.results import NAME

    loaded = studies.load(folder)
    chosen = chosen_cells(loaded, cells)
    own = folder / NAME
    file = own if results is None or results.resolve() == own.resolve() else _checked(results)
    if file is own:
        _check_overrides(overrides)
    failures = []
    if not only_page:
        with folder_for(output, folder.resolve().name) as written:
            failures = _run(loaded, chosen, overrides, file, written.absolute())
    click.echo(f"page            {write_page(loaded, file, overrides)}")
    if failures:
        raise RunFailedError(0, -1, "; ".join(failures))


def chosen_cells(loaded: "Study", names: str | None) -> list[str]:
    """Return the cells that `--cells` names, in the order in which they can run.

    Raises:
        SettingError: If the study has no such cell, or one is named twice.
    """
    chosen = list(loaded.cells) if names is None else names.split(",")
    for name in chosen:
        if name not in loaded.cells:
            known = ", ".join(nearest_first(name, loaded.cells))
            raise SettingError(f"--cells={names!r}: {name!r} is no cell of the study; it has: {known}")
        if chosen.count(name) > 1:
            raise SettingError(f"--cells={names!r}: {name!r} is given twice")
    return sorted(chosen, key=lambda name: loaded.settings.cells[name].tuned_as is not None)  # who lends goes first


def _checked(file: Path) -> Path:
    """Return the path of a results file that can be written.

    Raises:
        SettingError: If it cannot be one.
    """
    if file.suffix != ".jsonl" or file.is_dir():
        raise SettingError(f"--results={str(file)!r} is not allowed; allowed: a file whose name ends in .jsonl")
    from raysim.tracking.run_folder import make_folder  # its imports take seconds

    make_folder(file.absolute().parent)
    return file


def _check_overrides(overrides: tuple[str, ...]) -> None:
    """Refuse settings that would mix other results into those of the study."""
    for override in overrides:
        name = override.partition("=")[0].strip()
        if not any(name == each or name.startswith(f"{each}.") for each in SHARED):
            raise SettingError(
                f"--set {name!r} is not allowed, since the results would be those of another study; "
                f"allowed: settings under {', '.join(SHARED)}, or --results with another file"
            )


def _run(loaded: "Study", chosen: list[str], overrides: tuple[str, ...], file: Path, folder: Path) -> list[str]:
    """Run some cells; return which runs failed, and why."""
    from raysim.analysis.study import results, run, writer  # MLflow takes seconds to import

    splits = {name: run.check(loaded.unlent(name, overrides)) for name in _with_lenders(loaded, chosen)}
    failures = []
    for name in chosen:
        known = [each for each in results.read(file) if each.cell not in splits or each.split == splits[each.cell]]
        comparison = loaded.comparison(name, known, overrides)
        info(f"cell {name}: {len(comparison.trials)} trials, {len(comparison.runs)} runs")
        own = results.CellResults(file, name, comparison.base.executor.device, known)
        written = writer.open_writer(comparison, new_folder(folder / name), own)
        try:
            run.run(written, splits[name])
        except RunFailedError as error:
            failures.append(f"{name}: {error}")
    return failures


def _with_lenders(loaded: "Study", chosen: list[str]) -> list[str]:
    lenders = [loaded.settings.cells[name].tuned_as for name in chosen]
    return list(dict.fromkeys([*chosen, *(name for name in lenders if name is not None)]))


def write_page(loaded: "Study", file: Path, overrides: tuple[str, ...] = ()) -> Path:
    """Write the page of a study and its figure beside its results; return the page's path.

    The page of the study's own results is its README.md; another has the name of the results file.
    """
    from raysim.analysis.study import figure, page, results

    is_own = file == loaded.folder / results.NAME
    path = file.with_name("README.md") if is_own else file.with_suffix(".md")
    drawn = file.with_name(page.FIGURE) if is_own else file.with_suffix(".svg")
    tables = page.tables_of(loaded, results.read(file), overrides)
    if tables:
        figure.draw(drawn, tables)
    return atomic.write_text(path, page.text(loaded, tables, drawn.name))
