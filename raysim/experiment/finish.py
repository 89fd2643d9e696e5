"""Write the results of a run into its folder: final model, tables, partition and summary."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from raysim.core import tensors
from raysim.experiment.cost import Prices, costs_of
from raysim.experiment.experiment import Experiment
from raysim.report.clients import by_round, texts
from raysim.simulation import checkpoint, records
from raysim.simulation.fedavg import why_not_compared
from raysim.simulation.participation import Participation
from raysim.simulation.state import FinalState, Totals, summary_of, targets_of
from raysim.tracking.run_reader import digests_of_files


def summarise(experiment: Experiment, final: FinalState, wall_s: float) -> dict[str, Any]:
    """Return the content of `summary.json`: what a run reached and spent.

    Args:
        experiment: The run.
        final: Its final state.
        wall_s: Measured seconds of all its rounds, in earlier processes too.
    """
    settings, totals, ids = experiment.settings, final.totals, experiment.mlflow_ids
    metric = experiment.scenario.primary
    return {
        "run_id": ids["run_id"],
        "experiment": settings.experiment,
        "method": settings.method.name,
        "seed": settings.seed,
        "rounds": final.round,
        **metric.entries,
        **metric.as_recorded({"primary": totals.primary, "best_primary": totals.best_primary}),
        **_validation_of(experiment, totals),
        **({"metrics": totals.further} if totals.further else {}),
        "widths": [metric.as_recorded(asdict(each)) for each in totals.widths],
        **summary_of(totals),
        "why_no_fedavg": why_not_compared(settings.selection.rule, settings.stop.given),
        "targets": targets_of(totals, experiment.scenario.targets, metric),
        "num_classes": experiment.scenario.workload.data.num_classes,
        "full_model": asdict(experiment.scenario.costs.dense),
        "params_sha256": tensors.digest(final.params),
        "output_dir": str(experiment.folder),
        "tracking_uri": ids["tracking_uri"],
        "experiment_id": ids["experiment_id"],
        "wall_s": wall_s,
        "costs": costs_of(Prices(**settings.costs.model_dump()), totals.energy_j, wall_s),
    }


def _validation_of(experiment: Experiment, totals: Totals) -> dict[str, Any]:
    """Return what was reached on the validation rows, and on which rows the run was ended by its score."""
    rows, metric = experiment.scenario.validation_rows, experiment.scenario.primary
    found: dict[str, Any] = {}
    if len(rows):
        found[metric.recorded("validation_primary")] = totals.validation_primary
        found["validation_rows"] = len(rows)
        found["chosen_by_validation"] = None if totals.chosen is None else metric.as_recorded(asdict(totals.chosen))
    if experiment.settings.stop.value is not None:
        found[metric.recorded("stopped_by_primary_on")] = "validation rows" if len(rows) else "test rows"
    return found


def write_results(experiment: Experiment, final: FinalState, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Write the final model, all tables, the partition, and at last the summary.

    Returns:
        The summary, with who never counted, which the table of clients holds, and the SHA-256 of each file that
        readers of the run use.

    Raises:
        OSError: If a file cannot be written.
    """
    folder = experiment.folder
    checkpoint.save_params(final.served_params, folder / "model.safetensors")
    records.merge_all(folder, final.round)
    if final.table:
        records.write_all([final.table], folder / "method.parquet")
    write_partition(experiment)
    if (folder / "report.html").is_file():
        (folder / "report.html").remove()  # it is of the rounds before the run was stopped
    complete = {**summary, "never_counted": never_counted(experiment), "files_sha256": digests_of_files(folder)}
    (folder / "summary.json").write_text(json.dumps(complete, indent=2))
    return complete


def never_counted(experiment: Experiment) -> dict[str, Any]:
    """Return the tiers and clients whose work never counted, from the table of clients."""
    found = Participation(experiment.scenario.workload.population.devices)
    with (experiment.folder / "clients.parquet").fetched() as file:
        for rows in by_round(file, ("round", "client", "fate")):
            found.add(rows["client"], texts(rows, "fate"))
    return found.never_counted()


def write_partition(experiment: Experiment) -> None:
    """Write and draw which client owns how many rows of which class."""
    from raysim.data import figure  # Matplotlib would delay the first round

    settings, folder, workload = experiment.settings, experiment.folder, experiment.scenario.workload
    title = f"{settings.data.name} partitioned by {settings.data.partition.name}, seed {settings.split_seed}"
    owned = (workload.population.train, workload.population.heldout)
    labels = workload.data.strata
    num_classes = int(labels.max()) + 1
    clients, counts = figure.class_counts(labels, owned, num_classes)
    row, label = np.nonzero(counts)
    columns = {"client": clients[row], "label": label, "rows": counts[row, label]}
    records.write_all([columns], folder / "partition.parquet")
    (folder / "partition.png").write(lambda partial: figure.draw(partial, labels, owned, num_classes, title))
