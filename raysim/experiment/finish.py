"""Write the results of a run into its folder: final model, tables, partition and summary."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from raysim.core import tensors
from raysim.experiment.cost import Prices, costs_of
from raysim.experiment.experiment import Experiment
from raysim.simulation import checkpoint, records
from raysim.simulation.state import FinalState, summary_of, targets_of


def summarise(experiment: Experiment, final: FinalState, wall_s: float) -> dict[str, Any]:
    """Return the content of `summary.json`: what a run reached and spent.

    Args:
        experiment: The run.
        final: Its final state.
        wall_s: Measured seconds of all its rounds, in earlier processes too.
    """
    settings, totals, ids = experiment.settings, final.totals, experiment.mlflow_ids
    return {
        "run_id": ids["run_id"],
        "experiment": settings.experiment,
        "method": settings.method.name,
        "seed": settings.seed,
        "rounds": final.round,
        "accuracy": totals.accuracy,
        "best_accuracy": totals.best_accuracy,
        **summary_of(totals),
        "targets": targets_of(totals, experiment.scenario.targets),
        "full_model": asdict(experiment.scenario.costs.dense),
        "params_sha256": tensors.digest(final.params),
        "output_dir": str(experiment.folder),
        "tracking_uri": ids["tracking_uri"],
        "experiment_id": ids["experiment_id"],
        "wall_s": wall_s,
        "costs": costs_of(Prices(**settings.costs.model_dump()), totals.energy_j, wall_s),
    }


def write_results(experiment: Experiment, final: FinalState, summary: Mapping[str, Any]) -> None:
    """Write the final model, the tables of rounds, clients and channels, the partition, and at last the summary.

    Raises:
        OSError: If a file cannot be written.
    """
    folder = experiment.folder
    checkpoint.save_params(final.served_params, folder / "model.safetensors")
    records.merge_all(folder)
    write_partition(experiment)
    if (folder / "report.html").is_file():
        (folder / "report.html").remove()  # it is of the rounds before the run was stopped
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))


def write_partition(experiment: Experiment) -> None:
    """Write and draw which client owns how many rows of which class."""
    from raysim.data import figure  # Matplotlib would delay the first round

    settings, folder, workload = experiment.settings, experiment.folder, experiment.scenario.workload
    title = f"{settings.data.name} partitioned by {settings.data.partition.name}, seed {settings.split_seed}"
    owned = (workload.population.train, workload.population.heldout)
    labels, num_classes = workload.data.train_labels, workload.data.num_classes
    clients, counts = figure.class_counts(labels, owned, num_classes)
    row, label = np.nonzero(counts)
    columns = {"client": clients[row], "label": label, "rows": counts[row, label]}
    records.write_all([columns], folder / "partition.parquet")
    (folder / "partition.png").write(lambda partial: figure.draw(partial, labels, owned, num_classes, title))
