"""Run a comparison: one run after another in this process, or spread over Ray with one CPU per run."""

from collections.abc import Iterator, Sequence

from raysim.analysis.study import tuning
from raysim.analysis.study.one_run import Outcome, check_split, digests_of, run_one
from raysim.analysis.study.plan import Comparison, Run
from raysim.analysis.study.table import Figures
from raysim.analysis.study.writer import ComparisonWriter
from raysim.config.executor import ExecutorSettings
from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import metric_in
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.formatting import duration
from raysim.core.log import info, warning
from raysim.simulation.build import build_scenario


def run(writer: ComparisonWriter, digests: dict[str, str] | None = None) -> None:
    """Execute all runs of a comparison; each is written as soon as it has ended, even if others fail.

    Args:
        writer: Its writer.
        digests: The hashes of its split, if `check` has returned them; None: it is checked first.

    Raises:
        SettingError: If a setting does not fit the data or the model; nothing has been trained then.
        RunFailedError: If runs failed, once all the others have finished.
    """
    status = "KILLED"
    digests = check(writer.comparison) if digests is None else digests
    try:
        writer.begin(digests)
        if writer.comparison.trials:
            writer.tune(tuning.judged(writer.comparison.settings, _tried(writer), writer.comparison.primary))
        runs = writer.comparison.runs
        missing = writer.take_earlier(runs)
        for index, outcome in outcomes(missing, writer.comparison.base.executor, digests):
            figures = writer.add(missing[index], outcome)
            name = f"{len(writer.figures)}/{len(runs)}  {figures['label']} seed {figures['seed']}"
            _log(name, outcome, _reached(figures))
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


def _tried(writer: ComparisonWriter) -> Iterator[tuple[int, float | str]]:
    """Yield the index of each trial, and its score on validation rows or why it failed, as it ends."""
    trials, executor = writer.comparison.trials, writer.comparison.base.executor
    metric = writer.comparison.primary
    earlier = dict(writer.earlier_trials(trials))
    yield from earlier.items()
    missing = [index for index in range(len(trials)) if index not in earlier]
    outcomes_of_missing = outcomes([trials[index] for index in missing], executor, writer.digests)
    for count, (position, outcome) in enumerate(outcomes_of_missing, 1 + len(earlier)):
        trial = trials[missing[position]]
        label = f"{trial.label}, seed {trial.seed}"
        check_split(label, outcome, writer.digests)
        result = outcome.failure or tuning.validation_score(outcome)
        writer.add_trial(trial, outcome, result)
        reached = "" if isinstance(result, str) else f"{metric.text(result)} on validation rows"
        _log(f"tuning {count}/{len(trials)}  {label}", outcome, f"{metric.title} {reached}")
        yield missing[position], result


def check(comparison: Comparison) -> dict[str, str]:
    """Build every method and trial once without training, and return the hashes of the split they share.

    Raises:
        SettingError: If a method does not fit the data or the model.
    """
    digests: dict[str, str] = {}
    for entry in comparison.settings.methods:
        settings = next(run.settings for run in comparison.runs if run.entry is entry)
        digests = _digests_of(entry.title, settings)
    for trial in tuning.not_of_numbers(comparison):
        _digests_of(trial.label, trial.settings)
    return digests


def _digests_of(row: str, settings: ExperimentSettings) -> dict[str, str]:
    try:
        return digests_of(build_scenario(settings))
    except SettingError as error:
        raise SettingError(f"methods: {row!r}: {error}") from None


def outcomes(
    runs: Sequence[Run], executor: ExecutorSettings, digests: dict[str, str]
) -> Iterator[tuple[int, Outcome]]:
    """Yield the index and outcome of each run as it ends."""
    scenarios = (build_scenario(run.settings) for run in runs)
    if executor.kind == "in-process":
        for index, scenario in enumerate(scenarios):
            yield index, run_one(scenario, executor.device)
        return
    from raysim.executors.ray.map_tasks import run_tasks  # takes seconds to import, and is needed only here

    at_once = executor.num_actors if isinstance(executor.num_actors, int) else None
    for index, outcome in run_tasks(run_one, scenarios, at_once, executor.address):
        yield index, Outcome(digests, 0, failure=str(outcome)) if isinstance(outcome, RunFailedError) else outcome


def _log(name: str, outcome: Outcome, reached: str) -> None:
    """Show how a run ended: why it failed, or what it reached."""
    if outcome.failure:
        warning(f"{outcome.details}{name}  failed: {outcome.failure}")
    else:
        info(f"{name}  {reached}  ({duration(outcome.wall_s)})")


def _reached(figures: Figures) -> str:
    if figures["failure"]:
        return ""
    metric = metric_in(figures)
    return f"{metric.title} {metric.text(figures[metric.name])}  simulated {duration(figures['simulated_s'])}"
