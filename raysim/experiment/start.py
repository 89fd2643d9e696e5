"""Write what a run is into its folder before the first round: settings, versions, digests, and its scenario."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from raysim.budgets.solver import BudgetSolver
from raysim.config import loader
from raysim.core import tensors
from raysim.core.storage.path import StoragePath
from raysim.experiment.experiment import Experiment
from raysim.population import population, serialization
from raysim.simulation.scenario import Scenario
from raysim.tracking.observer import RunInfo
from raysim.tracking.run_folder import update_run_json


def write_start(experiment: Experiment) -> RunInfo:
    """Write what is about to run, or of a resumed run what is missing; return it as its observers see it.

    Raises:
        OSError: If a file cannot be written.
    """
    settings, scenario, folder = experiment.settings, experiment.scenario, experiment.folder
    if not (folder / "config.yaml").is_file():
        (folder / "config.yaml").write_text(loader.to_yaml(settings))
    if (folder / "run.json").is_file():
        update_run_json(folder, state=None, failure=None)
    else:
        (folder / "run.json").write_text(json.dumps(metadata_of(experiment), indent=2))
    if experiment.summary is None:  # else the files have digests
        write_scenario(scenario, folder)
    return RunInfo(settings, scenario, folder)


def write_scenario(scenario: Scenario, folder: StoragePath) -> None:
    """Write what reports and replays need of a scenario: channel groups, budgets and devices."""
    plan, clients = scenario.workload.plan, scenario.workload.population
    (folder / "plan.json").write(plan.save)
    write_budgets(scenario.budget, folder)
    (folder / "devices.parquet").write(
        lambda partial: serialization.save(clients.devices, partial, clients.train.counts)
    )


def write_budgets(solver: BudgetSolver | None, folder: StoragePath) -> None:
    """Write how budgets are solved, so that they can be solved again without the model; null if they are not."""
    content = None if solver is None else solver.to_json()
    (folder / "budgets.json").write_text(json.dumps(content))


def metadata_of(experiment: Experiment) -> dict[str, Any]:
    """Return the content of `run.json`: which run it is, and what equal bits depend on beyond config.yaml."""
    scenario, workload = experiment.scenario, experiment.scenario.workload
    return {
        **experiment.mlflow_ids,
        "key": experiment.key,
        "output_dir": str(experiment.folder),
        **{f"{what}_sha256": digest for what, digest in data_digests(scenario).items()},
        "config_sha256": loader.digest(experiment.settings),
        "full_model": asdict(scenario.costs.dense),
        "num_classes": workload.data.num_classes,
        **scenario.primary.entries,
        "leftover_rows": population.leftover_rows(workload.population, scenario.num_divided),
        "environment": environment(),
        "finished": False,
    }


def data_digests(scenario: Scenario) -> dict[str, str]:
    """Return the digests of the data, and of its partition over clients and devices."""
    workload, validating = scenario.workload, scenario.validation_rows
    found = {"data": workload.data.digest, "partition": population.digest(workload.population)}
    if len(validating):
        found["validation"] = tensors.digest(tensors.as_tensors({"rows": validating}))
    return found


def environment() -> dict[str, str]:
    """Return what equal bits depend on beyond the settings: versions and the type of CPU."""
    versions = {f"version.{name}": version(name) for name in ("raysim", "torch", "numpy", "ray", "mlflow")}
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        **versions,
        "version.python": platform.python_version(),
        "cpu": f"{platform.machine()} {capability}",
    }
