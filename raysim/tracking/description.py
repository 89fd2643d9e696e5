"""Write the description of a run in MLflow, in Markdown: what ran, on what, and its results."""

from collections.abc import Mapping
from typing import Any

from raysim.clock import outcomes
from raysim.clock.modes import who_trains
from raysim.config.experiment import ExperimentSettings
from raysim.config.metric import PrimaryMetric, metric_in
from raysim.core.formatting import duration, joules
from raysim.simulation.participation import never_counted_lines
from raysim.simulation.scenario import Scenario

TAG = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run."""
DEVICES = ("preset", "path", "fedscale", "profiles")
"""The sources of devices other than tiers."""


def devices_of(settings: ExperimentSettings) -> str:
    """Return the name of the source of devices: a preset, a file, `profiles` or `tiers`."""
    source = settings.population.devices
    if source is None:
        return "tiers"
    found = next((kind, getattr(source, kind)) for kind in DEVICES if getattr(source, kind) is not None)
    return str(found[1]) if isinstance(found[1], str) else found[0]


def before(settings: ExperimentSettings, scenario: Scenario, folder: str) -> str:
    """Return the description of a run that begins."""
    data, population = scenario.workload.data, scenario.workload.population
    clock, cohort = scenario.clock, scenario.cohort_size
    who = who_trains(clock.mode, cohort, len(population), clock.buffer_size, clock.concurrency)
    tiers, size = ", ".join(population.devices.tiers), scenario.costs.dense.parameters
    return "\n".join(
        (
            f"**{settings.method.name}** trains {settings.model.name} ({size:,} parameters) on "
            f"{settings.data.name}, seed {settings.seed}.",
            "",
            f"- **Rounds**: {settings.rounds}, `{settings.clock.mode}`, {who}, chosen by `{settings.selection.rule}`",
            f"- **Data**: {len(data.train_targets):,} training and {len(data.test_targets):,} test rows, partitioned "
            f"by `{settings.data.partition.name}`",
            f"- **Devices**: {devices_of(settings)} ({tiers}), budgets by `{settings.budget.rule}`",
            f"- **Files**: `{folder}`; `raysim resume {folder}` resumes a run that was stopped",
        )
    )


def after(begun: str, summary: Mapping[str, Any], model: str | None) -> str:
    """Return the description of a run that has finished, with the results first.

    Args:
        begun: Its description when it began.
        summary: Costs and results of the run.
        model: The URI of the final model in MLflow's registry; None: it is not registered.
    """
    metric = metric_in(summary)
    last, best = (metric.text(summary[metric.recorded(name)]) for name in ("primary", "best_primary"))
    rows = [
        (f"test {metric.title}", f"{last}, best {best}", ""),
        *_validation(summary, metric),
        *(
            (f"test {metric.title} cut to width {each['width']:.3g}", metric.text(each[metric.name]), "")
            for each in summary.get("widths", ())
            if each["width"] < 1
        ),
        ("bytes", f"{summary['down_bytes'] + summary['up_bytes']:,}", _of_fedavg(summary, "bytes")),
        ("training FLOPs", f"{summary['train_flops']:.4g}", _of_fedavg(summary, "flops")),
        ("pruned parameters", f"{100 * summary['pruning_ratio_mean']:.1f} % on average", "0 % there"),
        (
            "simulated time",
            f"{summary['simulated_s']:,.1f} s ({duration(summary['simulated_s'])})",
            _of_fedavg(summary, "simulated"),
        ),
    ]
    energy = ("energy of the devices", joules(summary["energy_j"]), _of_fedavg(summary, "energy"))
    rows += [energy] if summary["energy_j"] else []
    lost = {outcome: count for outcome, count in summary["fates"].items() if outcome != outcomes.COUNTED}
    reasons = ", ".join(f"{count} {outcome}" for outcome, count in lost.items())
    rows += [("client rounds that did not count", reasons, "")] if lost else []
    if summary["preparation_s"]:
        spent = f"{summary['preparation_s']:,.1f} s, {summary['preparation_bytes']:,} bytes"
        rows.append(("of that before round 1", spent, ""))
    rows += [_target(target, metric) for target in summary["targets"]]
    table = ["| | this run | of FedAvg |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    why = summary["why_no_fedavg"]
    ended = f"Not compared with FedAvg: {why}.\n\n" if why else ""
    never = summary.get("never_counted")
    ended += "".join(f"Never counted: {line}.\n\n" for line in never_counted_lines(never)) if never else ""
    ended += f"{summary['rounds']} rounds in {duration(summary['wall_s'])} of wall time."
    served = [f"`mlflow.pytorch.load_model('{model}')` gives the final model.", ""] if model else []
    return "\n".join((*table, "", ended, "", *served, begun))


def _validation(summary: Mapping[str, Any], metric: PrimaryMetric) -> list[tuple[str, str, str]]:
    chosen, rows = summary.get("chosen_by_validation"), []
    name = metric.recorded("validation_primary")
    if chosen is not None:
        test = metric.text(chosen[metric.name])
        best = f"best {metric.text(chosen[name])} in round {chosen['round']} (test {test})"
        rows.append((f"validation {metric.title}", f"{metric.text(summary[name])}, {best}", ""))
    ended_on = summary.get(metric.recorded("stopped_by_primary_on"))
    if ended_on is not None:
        rows.append((f"`{metric.stop_setting}`", f"of the {ended_on}", ""))
    return rows


def _of_fedavg(summary: Mapping[str, Any], name: str) -> str:
    percent = summary[f"{name}_percent_of_fedavg"]
    return "-" if percent is None else f"{percent:.1f} %"


def _target(target: Mapping[str, Any], metric: PrimaryMetric) -> tuple[str, str, str]:
    name = f"{metric.title} {target[metric.name]:g}"
    if target["round"] is None:
        return name, "not reached", ""
    return name, f"round {target['round']}, {target['simulated_s']:,.1f} simulated s, {target['bytes']:,} bytes", ""
