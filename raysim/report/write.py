"""From a run's records to its report."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from raysim.clock.modes import MODES, who_trains
from raysim.clock.outcomes import COUNTED
from raysim.core.errors import SettingError
from raysim.core.storage.local import storage_path
from raysim.core.storage.path import StoragePath
from raysim.report import accuracy, coverage, diagnostics, fragments, headline, page, partition, pruning, timeline
from raysim.report.clients import ClientsOfRounds, Summing, by_round
from raysim.report.fedavg import FedAvg
from raysim.report.source import Recorded, of_folder, of_run
from raysim.tracking import run_reader
from raysim.tracking.run_folder import as_setting

FILE = "report.html"


def of_ended(folder: StoragePath) -> StoragePath:
    """Write the report of the run in a folder beside its records.

    Raises:
        SettingError: If it has no round, or its records cannot be read.
    """
    with of_folder(folder, str(folder)) as recorded:
        return (folder / FILE).write_text(render(recorded))


def of_named(
    run: str, output: str | None = None, tracking_uri: str | None = None, baseline: str | None = None
) -> StoragePath:  # fmt: skip
    """Write a run's report and return where it is.

    Args:
        run: Output folder of the run, or its id in MLflow.
        output: A path or URI of the page; none = in the run's folder, or for an id in the current one.
        tracking_uri: The MLflow store; none = MLFLOW_TRACKING_URI if set, else the default one.
        baseline: Another run on the same data, to which it is compared; none = to what FedAvg would have taken.

    Raises:
        SettingError: If there is no such run, it has no round, its records cannot be read, the baseline has other
            data, or the page cannot be written.
    """
    folder = run_reader.folder_of(run)
    place = storage_path(output or (f"report-{run}.html" if folder is None else folder / FILE))
    with ExitStack() as stack:
        recorded = stack.enter_context(of_run(run, tracking_uri))
        other = None if baseline is None else stack.enter_context(_baseline(baseline, tracking_uri))
        if other is not None:
            _check_data(recorded, other)
        with run_reader.reading(run):
            text = render(recorded, other)
    with as_setting(place, "cannot be written"):
        return place.write_text(text)


@contextmanager
def _baseline(run: str, tracking_uri: str | None) -> Iterator[Recorded]:
    with ExitStack() as stack:
        try:
            recorded = stack.enter_context(of_run(run, tracking_uri))
        except SettingError as error:
            raise SettingError(f"--baseline: {error}") from None
        yield recorded


def _check_data(recorded: Recorded, baseline: Recorded) -> None:
    """Refuse a baseline of which it is known that it has other data."""
    known = (run_reader.digests_in(each.noted, each.summary).get("data") for each in (recorded, baseline))
    if len(set(known) - {None}) > 1:
        raise SettingError(
            f"--baseline={baseline.name!r} has other data than RUN={recorded.name!r}; allowed: the same"
        )


def render(recorded: Recorded, baseline: Recorded | None = None) -> str:
    """Return a run's report as one HTML page, compared with a baseline, or with what FedAvg would have taken."""
    clients, fedavg = summed_up(recorded)
    counted = clients.outcomes.get(COUNTED, np.zeros(len(clients.round), dtype=np.int64))
    sections = [
        headline.section(recorded, clients, fedavg, baseline),
        accuracy.section(recorded, baseline),
        pruning.section(clients),
        coverage.section(recorded, dict(zip(clients.round.tolist(), counted.tolist(), strict=True))),
        timeline.section(recorded, clients),
        partition.section(recorded),
        diagnostics.section(recorded),
        fragments.section(recorded),
    ]
    return page.render(_title(recorded), sections, _subtitle(recorded))


def summed_up(recorded: Recorded) -> tuple[ClientsOfRounds, FedAvg | None]:
    """Read the table of clients once, and return what it tells, and what FedAvg would have taken."""
    rounds = recorded.rounds["round"].tolist()
    tiers = () if recorded.devices is None else recorded.devices.tiers
    summing = Summing(recorded.num_clients, timeline.rounds_to_show(rounds), tiers)
    fedavg, is_first = None, True
    for rows in by_round(recorded.files / "clients.parquet"):
        if int(rows["round"][0]) > rounds[-1]:  # the run goes on, and its round is not written down yet
            continue
        fedavg, is_first = FedAvg.of(recorded, rows) if is_first else fedavg, False
        summing.add(rows)
        if fedavg is not None:
            fedavg.add(rows)
    return summing.total(), fedavg


def _title(recorded: Recorded) -> str:
    settings = recorded.settings
    return f"{settings['method']['name']} on {settings['data']['name']} with {settings['model']['name']}"


def _subtitle(recorded: Recorded) -> str:
    settings, rounds = recorded.settings, len(recorded.rounds["round"])
    clock, cohort = settings["clock"], settings["selection"]["clients_per_round"]
    at_work = (MODES[clock["mode"]], cohort, recorded.num_clients, clock.get("buffer_size"), clock.get("concurrency"))
    told = [
        f"experiment {settings['experiment']}", f"{rounds:,} rounds", who_trains(*at_work), f"clock {clock['mode']}",
        f"seed {settings['seed']}",
    ]  # fmt: skip
    return ", ".join(told)
