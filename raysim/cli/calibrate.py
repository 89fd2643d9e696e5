"""The commands that measure this machine: `raysim calibrate` and `raysim probe`."""

import json
from pathlib import Path
from typing import Any

import click

from raysim.cli.arguments import PATH
from raysim.config import loader
from raysim.terminal import console


@click.command(short_help="Fit a device's constants to steps timed here.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--input-shape", metavar="C,H,W", help="Channels, height, width [3,32,32; 1,28,28 for lenet, cnn, mlp]."
)
@click.option("--classes", "num_classes", default=10, show_default=True, help="Number of classes.")
@click.option("--options", metavar="YAML", help="Options of the model, as in '{hidden: 64}'.")
@click.option("--batch-size", default=10, show_default=True, help="Rows of a training step, as in your experiment.")
@click.option("--repeats", default=12, show_default=True, help="Repeats of each width; the fastest counts.")
@click.option("--output", type=PATH, help="Folder for the files [runs/calibration-<time>].")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
def calibrate(output: Path | None, as_json: bool, **request: Any) -> None:
    """Measure training steps of MODEL on this machine and fit a device's constants to them."""
    from raysim.calibration import report
    from raysim.calibration.run import Request, run
    from raysim.core.storage import defaults

    with defaults.folder_for(output, "calibration") as folder:
        calibrations = run(Request(**request), folder.absolute())
    for each in calibrations:
        console.print_calibration(report.table(each), report.summary_lines(each), report.tier_yaml(each))
    click.echo(f"files in {folder}")
    if as_json:
        click.echo(json.dumps(report.to_json(calibrations)))


@click.command(short_help="Recommend how many clients to train at once.")
@click.argument("config", type=PATH)
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change a setting.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def probe(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Time the experiment in CONFIG with clients trained in packs of several sizes, and recommend `training.pack`."""
    from raysim.calibration.pack_probe import probe as timed
    from raysim.core.tensors import one_thread
    from raysim.simulation.build import build_scenario, check_names

    settings = loader.load(config, overrides)
    check_names(settings)
    scenario = build_scenario(settings)
    with one_thread():
        found = timed(scenario)
    if as_json:
        click.echo(json.dumps(found))
        return
    for size in found["sizes"]:
        click.echo(f"training.pack={size['pack']:<4} {size['clients_per_s']:>10,.0f} clients/s")
    click.echo(f"recommended here: training.pack={found['recommended']} (auto chooses {found['auto']})")
