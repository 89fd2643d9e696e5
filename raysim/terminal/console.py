"""Print the summary of a run, and its forecast, for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from rich.table import Table

from raysim.clock import outcomes
from raysim.config.metric import PrimaryMetric, metric_in
from raysim.core.formatting import AGAINST_FEDAVG, duration, joules, output, with_unit
from raysim.core.log import set_quiet
from raysim.simulation.participation import never_counted_lines

Command = TypeVar("Command", bound=Callable[..., Any])


def quiet_option(command: Command) -> Command:
    """Give a command the option `--quiet`, which holds for all of its messages."""
    return click.option(
        "--quiet",
        "-q",
        is_flag=True,
        expose_value=False,
        callback=_be_quiet,
        help="Print only warnings and errors on standard error.",
    )(command)


def _be_quiet(_context: click.Context, _option: click.Parameter, is_given: bool) -> None:
    set_quiet(is_given)


def summary_lines(summary: Mapping[str, Any], command: str = "", page: str = "") -> list[str]:
    """Return the last lines of a run.

    Args:
        summary: Costs and results of the run.
        command: Opens MLflow's pages; empty: the run is not in MLflow.
        page: The page of the run.
    """
    in_mlflow = [f"open in MLflow          {command}", f"                        then {page}"]
    metric = metric_in(summary)
    last, best = (metric.text(summary[metric.recorded(name)]) for name in ("primary", "best_primary"))
    return [
        f"run                     {summary['method']}, {summary['rounds']} rounds, files in {summary['output_dir']}",
        f"{f'global test {metric.title}':<23} {last} (best {best})",
        *_validation_lines(summary, metric),
        *_width_lines(summary, metric),
        f"mean pruning ratio      {summary['pruning_ratio_mean']:.4f} of the parameters",
        *_fedavg_lines(summary),
        f"simulated time          {summary['simulated_s']:.1f} s ({duration(summary['simulated_s'])})",
        *_energy_lines(summary),
        *_lost_lines(summary),
        *_never_lines(summary),
        *(_target_line(target, metric) for target in summary["targets"]),
        f"wall time               {summary['wall_s']:.1f} s",
        *(in_mlflow if command else []),
    ]


def _validation_lines(summary: Mapping[str, Any], metric: PrimaryMetric) -> list[str]:
    """Return the score on the validation rows, and on which rows the run was ended by its score."""
    lines, chosen, name = [], summary.get("chosen_by_validation"), metric.recorded("validation_primary")
    if chosen is not None:
        test = metric.text(chosen[metric.name])
        best = f"best {metric.text(chosen[name])} in round {chosen['round']}: test {test}"
        lines.append(f"{f'validation {metric.title}':<23} {metric.text(summary[name])} ({best})")
    ended_on = summary.get(metric.recorded("stopped_by_primary_on"))
    if ended_on is not None:
        lines.append(f"{metric.stop_setting:<23} is of the {ended_on}")
    return lines


def against_fedavg(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return what a run has spent in per cent of FedAvg's, by what it is; nothing where that is not known.

    >>> against_fedavg({"bytes_percent_of_fedavg": 50.0, "simulated_percent_of_fedavg": None})
    {'bytes': 50.0}
    """
    found = {title: summary.get(f"{name}_percent_of_fedavg") for name, title in AGAINST_FEDAVG.items()}
    return {title: percent for title, percent in found.items() if percent is not None}


def _fedavg_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the lines on FedAvg; the last one if other numbers of client rounds would have counted."""
    if summary["fedavg"] is None:
        return [f"against FedAvg          not compared: {summary.get('why_no_fedavg') or 'it is not known'}"]
    lines = [f"{f'{title} against FedAvg':<24}{percent:.1f} %" for title, percent in against_fedavg(summary).items()]
    own, dense = summary["fates"].get(outcomes.COUNTED, 0), summary["fedavg"]["client_rounds"]
    counted = f"{dense:,} in the same rounds of FedAvg, {own:,} here"
    return lines + ([f"client rounds counted   {counted}"] if own != dense else [])


def _width_lines(summary: Mapping[str, Any], metric: PrimaryMetric) -> list[str]:
    """Return the test scores of the global model cut to narrower widths."""
    narrower = [each for each in summary.get("widths", ()) if each["width"] < 1]
    shown = ", ".join(f"{metric.text(each[metric.name])} at {each['width']:.3g}" for each in narrower)
    return [f"cut to each width       {shown}"] if narrower else []


def _energy_lines(summary: Mapping[str, Any]) -> list[str]:
    if not summary["energy_j"]:
        return []
    costs = summary["costs"]
    parts = [joules(summary["energy_j"])]
    parts += [f"{costs['device_price']:.4g} in money"] if "device_price" in costs else []
    parts += [f"{costs['device_co2_g']:.4g} g of CO2"] if "device_co2_g" in costs else []
    return [f"energy of the devices   {', '.join(parts)}"]


def _lost_lines(summary: Mapping[str, Any]) -> list[str]:
    lost = {outcome: count for outcome, count in summary["fates"].items() if outcome != outcomes.COUNTED}
    if not lost:
        return []
    total = sum(summary["fates"].values())
    reasons = ", ".join(f"{count} {outcome}" for outcome, count in sorted(lost.items(), key=lambda item: -item[1]))
    return [f"work that did not count {sum(lost.values())} of {total} client rounds: {reasons}"]


def _never_lines(summary: Mapping[str, Any]) -> list[str]:
    never = summary.get("never_counted")
    return [f"participation           {line}" for line in never_counted_lines(never)] if never else []


def _target_line(target: Mapping[str, Any], metric: PrimaryMetric) -> str:
    name = f"{f'{metric.title} {target[metric.name]:g}':<23}"
    if target["round"] is None:
        return f"{name} not reached"
    spent = f"{target['bytes'] / 1e6:,.1f} MB, {target['train_flops'] / 1e9:,.1f} GFLOP"
    spent += f", {joules(target['energy_j'])}" if target["energy_j"] else ""
    after = f"round {target['round']}, {target['simulated_s']:.1f} simulated s, {spent}"
    return f"{name} {after}"


def forecast_table(forecast: Mapping[str, Any]) -> Table:
    """Return a dry run's forecast as a table, one row per tier."""
    table = Table(title=f"{forecast['method']} on {forecast['data']} with {forecast['model']}")
    some_infeasible = any(tier["infeasible"] for tier in forecast["tiers"])
    some_late = any(tier["late"] for tier in forecast["tiers"])
    for heading in (
        "tier",
        "clients",
        *(["infeasible"] if some_infeasible else []),
        *(["late"] if some_late else []),
        "keep",
        "limited by",
        "pruned",
        "parameters",
        "MFLOP/\nexample",
        "MACs/\nbatch",
        "kB\ndown",
        "kB\nup",
        "download\ns",
        "compute\ns",
        "upload\ns",
        "mean\ns",
    ):
        is_text = heading in ("tier", "limited by")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for tier in forecast["tiers"]:
        table.add_row(
            tier["tier"],
            str(tier["clients"]),
            *([str(tier["infeasible"])] if some_infeasible else []),
            *([str(tier["late"])] if some_late else []),
            f"{tier['keep_ratio']:.3g}",
            tier["limited_by"],
            f"{tier['pruning_ratio']:.1%}",
            f"{tier['parameters']:,}",
            f"{tier['train_flops_per_example'] / 1e6:,.2f}",
            _macs(tier),
            f"{tier['down_bytes'] / 1e3:,.1f}",
            f"{tier['up_bytes'] / 1e3:,.1f}",
            *(_seconds(tier[key]) for key in ("download_s", "compute_s", "upload_s", "total_s")),
        )
    return table


def _macs(costs: Mapping[str, Any]) -> str:
    return with_unit(costs["forward_macs_per_batch"], "").strip()


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def print_tables(tables: Sequence[Table], lines: Sequence[str]) -> None:
    """Print tables and the lines below them to standard output."""
    console = output()
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)


def print_forecast(forecast: Mapping[str, Any]) -> None:
    """Print a dry run's forecast to standard output."""
    console = output()
    console.print(forecast_table(forecast))
    console.print(
        f"{forecast['rounds']} rounds of {forecast['cohort_size']} from {forecast['clients']} clients: "
        f"{duration(forecast['simulated_s'])} simulated, "
        f"{forecast['down_bytes'] / 1e6:,.1f} MB down, {forecast['up_bytes'] / 1e6:,.1f} MB up, "
        f"{forecast['train_flops'] / 1e9:,.1f} GFLOP "
        f"({_of_fedavg(forecast)})"
    )
    examples = forecast["examples_per_client"]
    console.print(
        f"training rows per client: {examples['min']} to {examples['max']}, median {examples['median']:g}; "
        f"channel groups: {forecast['channel_groups']} with {forecast['channels']} channels"
    )
    console.print(
        f"forward pass of the full model over a batch of {forecast['batch_size']}: "
        f"{_macs(forecast)} multiply-accumulates (MACs)"
    )
    late = [
        f"{tier['late']:,} of {tier['clients']:,} of {tier['tier']}" for tier in forecast["tiers"] if tier["late"]
    ]
    if late:
        console.print(f"late under the deadline if they took part in round 1: {', '.join(late)}")
    for line in (*forecast["remarks"], *never_counted_lines(forecast["never_counted"])):
        console.print(line)
    if forecast["forecast_rounds"] < forecast["rounds"]:
        console.print(
            f"predicted are the first {forecast['forecast_rounds']:,} of {forecast['rounds']:,} rounds; the others "
            "are counted as if they were like them"
        )
    elif not forecast["exact"]:
        console.print(
            "costs are an estimate: what is pruned, which clients are selected, or when the run ends depends on what "
            "is learned"
        )
    for layer, reason in forecast["unprunable"].items():
        console.print(f"not pruned: {layer} ({reason})")


def _of_fedavg(forecast: Mapping[str, Any]) -> str:
    if forecast["why_no_fedavg"]:
        return f"not compared with FedAvg: {forecast['why_no_fedavg']}"
    shares = ", ".join(f"{percent:.1f} % of its {title}" for title, percent in against_fedavg(forecast).items())
    own, dense = forecast["fates"].get(outcomes.COUNTED, 0), forecast["fedavg"]["client_rounds"]
    counted = f"; {own:,} client rounds count, {dense:,} of FedAvg's" if own != dense else ""
    return f"against FedAvg in the same rounds: {shares}{counted}"


def print_calibration(widths: Table, lines: Sequence[str], tier: str) -> None:
    """Print a calibration to standard output: its widths, its errors, and what to paste into a tier."""
    console = output()
    console.print(widths)
    for line in lines:
        console.print(line)
    console.print(f"\nfor a tier of an experiment:\n\n{tier}")
