"""Print the summary of a run, and its forecast, for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from rich.table import Table

from raysim.clock.outcomes import COUNTED
from raysim.core.formatting import duration, joules, output
from raysim.core.log import set_quiet

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
    return [
        f"run                     {summary['method']}, {summary['rounds']} rounds, files in {summary['output_dir']}",
        f"global test accuracy    {summary['accuracy']:.4f} (best {summary['best_accuracy']:.4f})",
        f"mean pruning ratio      {summary['pruning_ratio_mean']:.4f} of the parameters",
        f"bytes against FedAvg    {summary['bytes_percent_of_fedavg']:.1f} %",
        f"FLOPs against FedAvg    {summary['flops_percent_of_fedavg']:.1f} %",
        f"simulated time          {summary['simulated_s']:.1f} s ({duration(summary['simulated_s'])})",
        *_energy_lines(summary),
        *_lost_lines(summary),
        *map(_target_line, summary["targets"]),
        f"wall time               {summary['wall_s']:.1f} s",
        *(in_mlflow if command else []),
    ]


def _energy_lines(summary: Mapping[str, Any]) -> list[str]:
    if not summary["energy_j"]:
        return []
    costs = summary["costs"]
    parts = [joules(summary["energy_j"])]
    parts += [f"{costs['device_price']:.4g} in money"] if "device_price" in costs else []
    parts += [f"{costs['device_co2_g']:.4g} g of CO2"] if "device_co2_g" in costs else []
    return [f"energy of the devices   {', '.join(parts)}"]


def _lost_lines(summary: Mapping[str, Any]) -> list[str]:
    lost = {outcome: count for outcome, count in summary["fates"].items() if outcome != COUNTED}
    if not lost:
        return []
    total = sum(summary["fates"].values())
    reasons = ", ".join(f"{count} {outcome}" for outcome, count in sorted(lost.items(), key=lambda item: -item[1]))
    return [f"work that did not count {sum(lost.values())} of {total} client rounds: {reasons}"]


def _target_line(target: Mapping[str, Any]) -> str:
    if target["round"] is None:
        return f"accuracy {target['accuracy']:<14g} not reached"
    spent = f"{target['bytes'] / 1e6:,.1f} MB, {target['train_flops'] / 1e9:,.1f} GFLOP, {joules(target['energy_j'])}"
    after = f"round {target['round']}, {target['simulated_s']:.1f} simulated s, {spent}"
    return f"accuracy {target['accuracy']:<14g} {after}"


def forecast_table(forecast: Mapping[str, Any]) -> Table:
    """Return a dry run's forecast as a table, one row per tier."""
    table = Table(title=f"{forecast['method']} on {forecast['data']} with {forecast['model']}")
    some_infeasible = any(tier["infeasible"] for tier in forecast["tiers"])
    for heading in (
        "tier",
        "clients",
        *(["infeasible"] if some_infeasible else []),
        "keep",
        "limited by",
        "pruned",
        "parameters",
        "MFLOP/example",
        "kB down",
        "kB up",
        "download s",
        "compute s",
        "upload s",
        "mean s",
    ):
        table.add_column(heading, justify="left" if heading in ("tier", "limited by") else "right")
    for tier in forecast["tiers"]:
        table.add_row(
            tier["tier"],
            str(tier["clients"]),
            *([str(tier["infeasible"])] if some_infeasible else []),
            f"{tier['keep_ratio']:.3g}",
            tier["limited_by"],
            f"{tier['pruning_ratio']:.1%}",
            f"{tier['parameters']:,}",
            f"{tier['train_flops_per_example'] / 1e6:,.2f}",
            f"{tier['down_bytes'] / 1e3:,.1f}",
            f"{tier['up_bytes'] / 1e3:,.1f}",
            *(_seconds(tier[key]) for key in ("download_s", "compute_s", "upload_s", "total_s")),
        )
    return table


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
        f"({forecast['bytes_percent_of_fedavg']:.1f} % of FedAvg's bytes, "
        f"{forecast['flops_percent_of_fedavg']:.1f} % of its FLOPs)"
    )
    examples = forecast["examples_per_client"]
    console.print(
        f"training rows per client: {examples['min']} to {examples['max']}, median {examples['median']:g}; "
        f"channel groups: {forecast['channel_groups']} with {forecast['channels']} channels"
    )
    if not forecast["exact"]:
        console.print(
            "costs are an estimate: what is pruned, which clients are selected, or when the run ends depends on what "
            "is learned"
        )
    for layer, reason in forecast["unprunable"].items():
        console.print(f"not pruned: {layer} ({reason})")


def print_calibration(widths: Table, lines: Sequence[str], tier: str) -> None:
    """Print a calibration to standard output: its widths, its errors, and what to paste into a tier."""
    console = output()
    console.print(widths)
    for line in lines:
        console.print(line)
    console.print(f"\nfor a tier of an experiment:\n\n{tier}")
