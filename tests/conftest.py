"""Fixtures: tiny experiments on real digits, and one local Ray for the whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raysim import config_file, simulation
from raysim.config import ExperimentSettings
from raysim.rounds import Scenario

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "jobs" / "configs"

TINY = (
    "rounds=2",
    "population.clients=6",
    "selection.clients_per_round=3",
    "model.options={channels: [4, 8], hidden: 16}",
    "training.epochs=1",
    "executor.kind=in-process",
)

NEEDED_BY = {
    "dapperfl": ("training.epochs=2",),
    "feddst": ("method.options={readjust_rounds: 1}",),
    "prunefl": ("method.options={reconfigure_rounds: 1, initial_rounds: 2}",),
    "autoflip": ("method.options={exploration_epochs: 2}",),
}


def tiny_settings(*overrides: str) -> ExperimentSettings:
    """The digits experiment with six clients and a small network, changed by overrides."""
    return config_file.load(CONFIGS / "digits.yaml", (*TINY, *overrides))


def settings_of(method: str, *overrides: str) -> ExperimentSettings:
    """The tiny experiment with a method, and what that method needs."""
    return tiny_settings(f"method.name={method}", *NEEDED_BY.get(method, ()), *overrides)


@pytest.fixture(scope="session")
def tiny_scenario() -> Scenario:
    return simulation.build(tiny_settings())


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
