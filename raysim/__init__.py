"""Federated learning on heterogeneous devices with pruned submodels, simulated on Ray.

The public names, each imported from its module when it is first used.
"""

import os
from importlib import import_module
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads them when it is imported, wherever that is
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

_MODULES = {
    "ChannelGroup": "pruning.groups",
    "ChannelPlan": "pruning.plan",
    "CohortUpdate": "server.fill",
    "Dataset": "data.dataset",
    "DeviceProfile": "population.profiles",
    "ExperimentSettings": "config.experiment",
    "InProcessExecutor": "executors.in_process",
    "METHODS": "methods.table",
    "Mask": "pruning.masks",
    "Method": "methods.method",
    "MethodOptions": "methods.options",
    "Option": "core.options",
    "RoundReport": "simulation.state",
    "RoundView": "methods.method",
    "RunFailedError": "core.errors",
    "RunInfo": "tracking.observer",
    "RunObserver": "tracking.observer",
    "RunOutcome": "tracking.observer",
    "RunReader": "tracking.run_reader",
    "Scenario": "simulation.scenario",
    "ServerState": "simulation.state",
    "SettingError": "core.errors",
    "Tier": "population.profiles",
    "UntraceableError": "core.errors",
    "channel_sums": "pruning.significance",
    "initial_state": "simulation.transition",
    "load": "tracking.run_reader",
    "num_kept": "pruning.masks",
    "run_round": "simulation.round",
}

__all__ = sorted([*_MODULES, "seeding"])


def __getattr__(name: str) -> Any:
    if name == "seeding":
        return import_module("raysim.seeding")
    if name not in _MODULES:
        raise AttributeError(f"module 'raysim' has no attribute {name!r}")
    return getattr(import_module(f"raysim.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *globals()]
