"""Federated learning on heterogeneous devices with pruned submodels, simulated on Ray.

The public names, each imported from its module when it is first used.
"""

import os
from importlib import import_module
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads both when it is imported, wherever that is
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

_MODULES = {
    "ChannelGroup": "pruning.groups",
    "ChannelPlan": "pruning.plan",
    "CohortUpdate": "aggregation",
    "DeviceProfile": "types",
    "ExperimentSettings": "config",
    "InProcessExecutor": "executors",
    "METHODS": "methods.table",
    "Mask": "types",
    "Method": "methods.method",
    "MethodOptions": "methods.options",
    "Option": "methods.options",
    "RoundReport": "types",
    "RoundView": "methods.method",
    "RunFailedError": "errors",
    "Scenario": "scenario",
    "ServerState": "types",
    "SettingError": "errors",
    "Tier": "types",
    "UntraceableError": "errors",
    "channel_sums": "pruning.significance",
    "initial_state": "rounds",
    "num_kept": "pruning.masks",
    "run_round": "rounds",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'raysim' has no attribute {name!r}")
    return getattr(import_module(f"raysim.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *globals()]
