"""The command `raysim report`."""

import click

from raysim.cli.arguments import URI


@click.command(short_help="Write the report of RUN again.")
@click.argument("run")
@click.option(
    "--output",
    type=URI,
    metavar="FILE|URI",
    help="Where the page goes [report.html in the run's folder; for an id report-<id>.html here].",
)
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow store of a run id [MLFLOW_TRACKING_URI, or runs/mlflow.db]."
)
@click.option(
    "--baseline", metavar="RUN", help="Run on the same data to compare with [the predicted costs of FedAvg]."
)
def report(run: str, output: str | None, tracking_uri: str | None, baseline: str | None) -> None:
    """Write the report of RUN again: one HTML page with figures that opens anywhere.

    RUN is the output folder of a run, or its id in MLflow. Every run writes its own report when it ends; for a run
    that is in progress or has failed, the report covers the rounds so far.
    """
    from raysim.report import write

    click.echo(f"report: {write.of_named(run, output, tracking_uri, baseline)}")
