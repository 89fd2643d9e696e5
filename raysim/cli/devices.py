"""The command `raysim devices`."""

import json
from pathlib import Path

import click

from raysim.cli.arguments import PATH


@click.command(short_help="Show simulated devices: a preset or a file.")
@click.argument("source", metavar="[PRESET|FILE]", required=False)
@click.option("--clients", type=click.IntRange(min=1), help="Number of clients [10000; as many as a file has].")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the random draws [0].")
@click.option("--plot", type=PATH, help="Where the picture goes [devices-<PRESET|FILE>.png].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; a picture only with --plot.")
def devices(source: str | None, clients: int | None, seed: int, plot: Path | None, as_json: bool) -> None:
    """Show devices: a PRESET or a FILE; without either the presets are listed.

    FILE is a table (.csv, .parquet), FedScale's capacities (.pkl, .pickle, .json), or YAML with a population section.
    """
    from raysim.cli import device_page, device_tables  # what they import takes half a second

    if source is None:
        device_tables.print_presets()
        return
    page = device_page.of(source, clients, seed)
    if plot is None and not as_json:
        plot = Path(f"devices-{Path(source).stem}.png")
    if plot is not None:
        page.draw(plot)
    if as_json:
        click.echo(json.dumps(page.as_json() | {"plot": None if plot is None else str(plot)}))
        return
    device_tables.print_devices(page.title, page.summary, page.preset)
    click.echo(f"picture: {plot}")
