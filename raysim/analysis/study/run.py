"""Runs a comparison: in this process one run after another, or one CPU a run spread over Ray."""

from collections.abc import Iterable, Iterator

from raysim.analysis.study.one_run import Outcome, digests_of, run_one
from raysim.analysis.study.plan import Comparison
from raysim.analysis.study.record import Record
from raysim.analysis.study.table import Figures
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.formatting import duration
from raysim.core.log import info, warning
from raysim.simulation.build import build_scenario
from raysim.simulation.scenario import Scenario


def run(record: Record) -> None:
    """Play all runs of a comparison; each is written down as soon as it has ended, whatever became of the others.

    Raises:
        SettingError: If a setting does not fit the data or the model; nothing has been trained then.
        RunFailedError: If runs failed, once all the others have finished.
    """
    runs, status = record.comparison.runs, "KILLED"
    digests = check(record.comparison)
    try:
        record.begin(digests)
        for place, outcome in outcomes(record.comparison, digests):
            _say(record.keep(runs[place], outcome), outcome, f"{len(record.figures)}/{len(runs)}")
        failed = [figures for figures in record.figures if figures["failure"]]
        status = "FAILED" if failed else "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        record.end(status)
    if failed:
        named = "; ".join(f"{figures['label']} seed {figures['seed']}: {figures['failure']}" for figures in failed)
        raise RunFailedError(0, -1, f"{len(failed)} of {len(runs)} runs failed ({named})")


def check(comparison: Comparison) -> dict[str, str]:
    """Build every method once without training, and return the hashes of the split they share.

    Raises:
        SettingError: If a method does not fit the data or the model.
    """
    digests: dict[str, str] = {}
    for entry in comparison.settings.methods:
        settings = next(run.settings for run in comparison.runs if run.entry is entry)
        try:
            digests = digests_of(build_scenario(settings))
        except SettingError as error:
            raise SettingError(f"methods: {entry.title!r}: {error}") from None
    return digests


def outcomes(comparison: Comparison, digests: dict[str, str]) -> Iterator[tuple[int, Outcome]]:
    """Yield place and outcome of each run as it ends."""
    scenarios, executor = built(comparison), comparison.base.executor
    if executor.kind == "in-process":
        for place, scenario in enumerate(scenarios):
            yield place, run_one(scenario)
        return
    from raysim.executors.ray.map_tasks import run_tasks  # takes seconds to import, and is needed only here

    at_once = executor.num_actors if isinstance(executor.num_actors, int) else None
    for place, outcome in run_tasks(run_one, scenarios, at_once, executor.address):
        yield place, Outcome(digests, 0, failure=str(outcome)) if isinstance(outcome, RunFailedError) else outcome


def built(comparison: Comparison) -> Iterable[Scenario]:
    """Yield the scenario of each run, built when it is asked for."""
    return (build_scenario(run.settings) for run in comparison.runs)


def _say(figures: Figures, outcome: Outcome, count: str) -> None:
    name = f"{count}  {figures['label']} seed {figures['seed']}"
    if outcome.failure:
        warning(f"{outcome.details}{name}  failed: {outcome.failure}")
        return
    info(
        f"{name}  accuracy {figures['accuracy']:.4f}  simulated {duration(figures['simulated_s'])}  "
        f"({duration(outcome.wall_s)})"
    )
