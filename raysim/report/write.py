"""Write the report of a run, from its records to the page."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from raysim.clock import outcomes
from raysim.clock.modes import MODES, who_trains
from raysim.core.errors import SettingError
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.report import accuracy, coverage, diagnostics, fragments, headline, page, partition, pruning, timeline
from raysim.report.checks import check_records
from raysim.report.clients import ClientStatistics, ClientStatisticsBuilder, by_round, texts
from raysim.simulation.participation import Participation
from raysim.tracking import run_reader
from raysim.tracking.run_files import reading
from raysim.tracking.run_folder import as_setting
from raysim.tracking.run_reader import RunReader

FILE = "report.html"


def of_ended(folder: StoragePath) -> StoragePath:
    """Write the report of the run in a folder into the same folder.

    Raises:
        SettingError: If the run has no round, or its records cannot be read.
    """
    with RunReader.of_folder(folder) as run:
        check_records(run)
        return (folder / FILE).write_text(render(run))


def of_named(
    run: str, output: str | None = None, tracking_uri: str | None = None, baseline: str | None = None
) -> StoragePath:
    """Write the report of a run and return its path.

    Args:
        run: The output folder of the run, or its id in MLflow.
        output: Path or URI of the page; None: in the folder of the run, or for an id in the current one.
        tracking_uri: The MLflow store; None: MLFLOW_TRACKING_URI if set, else the default.
        baseline: Another run on the same data to compare with; None: compare with what FedAvg would have spent.

    Raises:
        SettingError: If there is no such run, it has no round, its records cannot be read, the baseline has other
            data, or the page cannot be written.
    """
    with ExitStack() as stack:
        shown = stack.enter_context(run_reader.load(run, tracking_uri))
        folder = shown.folder if shown.tracking_uri is None else None
        target = storage_path(output or (f"report-{run}.html" if folder is None else folder / FILE))
        check_records(shown)
        other = None if baseline is None else _baseline(stack, baseline, tracking_uri, shown)
        with reading(run):
            text = render(shown, other)
    with as_setting(target, "cannot be written"):
        return target.write_text(text)


def _baseline(stack: ExitStack, name: str, tracking_uri: str | None, run: RunReader) -> RunReader:
    """Open the baseline of a run; refuse one that is known to have other data."""
    try:
        baseline = stack.enter_context(run_reader.load(name, tracking_uri))
        check_records(baseline)
    except SettingError as error:
        raise SettingError(f"--baseline: {error}") from None
    data = {each.digests["data"] for each in (run, baseline) if "data" in each.digests}
    if len(data) > 1:
        raise SettingError(f"--baseline={name!r} has other data than RUN={run.name!r}; allowed: the same")
    if baseline.primary != run.primary:
        raise SettingError(
            f"--baseline={name!r} is scored by {baseline.primary.name!r}, RUN={run.name!r} by {run.primary.name!r}; "
            "allowed: the same"
        )
    return baseline


def render(run: RunReader, baseline: RunReader | None = None) -> str:
    """Return the report of a run as an HTML page, compared with a baseline, or with what FedAvg would have spent."""
    clients = summarise(run)
    counted = clients.outcomes.get(outcomes.COUNTED, np.zeros(len(clients.round), dtype=np.int64))
    sections = [
        headline.section(run, clients, baseline),
        accuracy.section(run, baseline),
        pruning.section(clients),
        coverage.section(run, dict(zip(clients.round.tolist(), counted.tolist(), strict=True))),
        timeline.section(run, clients),
        partition.section(run),
        diagnostics.section(run),
        fragments.section(run),
    ]
    return page.render(_title(run), sections, _subtitle(run))


def summarise(run: RunReader) -> ClientStatistics:
    """Read the table of clients once, and return its statistics."""
    rounds, file = run.rounds["round"].tolist(), run.table_file("clients")
    tiers = () if run.devices is None else run.devices.tiers
    builder = ClientStatisticsBuilder(run.settings.population.clients, timeline.rounds_to_show(rounds), tiers)
    took_part = None if run.devices is None else Participation(run.devices)
    for rows in by_round(file) if file is not None else ():
        if int(rows["round"][0]) > rounds[-1]:  # a round ended after the table of rounds was read
            continue
        builder.add(rows)
        if took_part is not None:
            took_part.add(rows["client"], texts(rows, "fate"))
    never = None if took_part is None else took_part.never_counted()
    return replace(builder.result(), never_counted=never)


def _title(run: RunReader) -> str:
    settings = run.settings
    return f"{settings.method.name} on {settings.data.name} with {settings.model.name}"


def _subtitle(run: RunReader) -> str:
    settings, clock = run.settings, run.settings.clock
    cohort, clients = settings.selection.clients_per_round, settings.population.clients
    facts = (
        f"experiment {settings.experiment}",
        f"{len(run.rounds['round']):,} rounds",
        who_trains(MODES[clock.mode], cohort, clients, clock.buffer_size, clock.concurrency),
        f"clock {clock.mode}",
        f"seed {settings.seed}",
    )
    return ", ".join(facts)
