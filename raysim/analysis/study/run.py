"""Run a comparison: one run after another in this process, or spread over Ray with one CPU per run."""

from collections.abc import Iterable, Iterator

from raysim.analysis.study.one_run import Outcome, digests_of, run_one
from raysim.analysis.study.plan import Comparison
from raysim.analysis.study.table import Figures
from raysim.analysis.study.writer import ComparisonWriter
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.formatting import duration
from raysim.core.log import info, warning
from raysim.simulation.build import build_scenario
from raysim.simulation.scenario import Scenario


def run(writer: ComparisonWriter) -> None:
    """Execute all runs of a comparison; each is written as soon as it has ended, even if others fail.

    Raises:
        SettingError: If a setting does not fit the data or the model; nothing has been trained then.
        RunFailedError: If runs failed, once all the others have finished.
    """
    runs, status = writer.comparison.runs, "KILLED"
    digests = check(writer.comparison)
    try:
        writer.begin(digests)
        for index, outcome in outcomes(writer.comparison, digests):
            figures = writer.add(runs[index], outcome)
            _log(figures, outcome, f"{len(writer.figures)}/{len(runs)}")
        failed = [figures for figures in writer.figures if figures["failure"]]
        status = "FAILED" if failed else "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        writer.end(status)
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
    """Yield the index and outcome of each run as it ends."""
    scenarios, executor = built(comparison), comparison.base.executor
    if executor.kind == "in-process":
        for index, scenario in enumerate(scenarios):
            yield index, run_one(scenario, executor.device)
        return
    from raysim.executors.ray.map_tasks import run_tasks  # takes seconds to import, and is needed only here

    at_once = executor.num_actors if isinstance(executor.num_actors, int) else None
    for index, outcome in run_tasks(run_one, scenarios, at_once, executor.address):
        yield index, Outcome(digests, 0, failure=str(outcome)) if isinstance(outcome, RunFailedError) else outcome


def built(comparison: Comparison) -> Iterable[Scenario]:
    """Yield the scenario of each run, built when it is needed."""
    return (build_scenario(run.settings) for run in comparison.runs)


def _log(figures: Figures, outcome: Outcome, count: str) -> None:
    name = f"{count}  {figures['label']} seed {figures['seed']}"
    if outcome.failure:
        warning(f"{outcome.details}{name}  failed: {outcome.failure}")
        return
    info(
        f"{name}  accuracy {figures['accuracy']:.4f}  simulated {duration(figures['simulated_s'])}  "
        f"({duration(outcome.wall_s)})"
    )
