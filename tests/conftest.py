"""Fixtures: tiny experiments on real digits, and one local Ray for the whole session."""

import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.simulation.build import build_scenario
from raysim.simulation.scenario import Scenario

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "jobs" / "configs"

SHARED_DATA = ROOT.parent / "shared" / "data"

TINY = (
    "rounds=2",
    "population.clients=6",
    "selection.clients_per_round=3",
    "model.options={channels: [4, 8], hidden: 16}",
    "training.epochs=1",
    "executor.kind=in-process",
)

INPUTS = {
    "cnn": (1, 8, 8),
    "cnn-dropout": (1, 14, 14),
    "convnet": (3, 32, 32),
    "lenet": (1, 28, 28),
    "mlp": (1, 8, 8),
    "vgg16": (3, 32, 32),
    "resnet": (3, 32, 32),
    "resnet32": (3, 32, 32),
    "two-cnn": (1, 24, 24),
    "femnist-cnn": (1, 28, 28),
    "unet": (3, 8, 8),
}
"""A shape of inputs for each model of the zoo that reads images."""

NEEDED_BY = {
    "dapperfl": ("training.epochs=2",),
    "feddst": ("method.options={readjust_rounds: 1}",),
    "fedtiny": ("method.options={readjust_rounds: 1, pool_size: 2}",),
    "fedmef": ("method.options={readjust_rounds: 1}",),
    "fedrts": ("method.options={readjust_rounds: 1}",),
    "prunefl": ("method.options={reconfigure_rounds: 1, initial_rounds: 2}",),
    "autoflip": ("method.options={exploration_epochs: 2}",),
    "hetlora": ("model.adapter={rank: 4, targets: ['*']}",),
    "flexlora": ("model.adapter={rank: 4, targets: ['*']}",),
}


LONGEST_FIRST = (
    "tests/cluster/", "tests/terminal/", "tests/test_laws.py", "tests/experiment/", "tests/tracking/",
    "tests/analysis/", "tests/docs/", "tests/cli/", "tests/test_law_13.py", "tests/report/", "tests/models/",
    "tests/jobs/", "tests/deploy/",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: side by side, no worker is left alone with one of them at the end."""
    if not hasattr(config, "workerinput"):
        return
    rank = {
        item: next((i for i, start in enumerate(LONGEST_FIRST) if item.nodeid.startswith(start)), 99)
        for item in items
    }
    items.sort(key=rank.__getitem__)


def tiny_settings(*overrides: str) -> ExperimentSettings:
    """The digits experiment with six clients and a small network, changed by overrides."""
    return loader.load(CONFIGS / "digits.yaml", (*TINY, *overrides))


def settings_of(method: str, *overrides: str) -> ExperimentSettings:
    """The tiny experiment with a method, and what that method needs."""
    return tiny_settings(f"method.name={method}", *NEEDED_BY.get(method, ()), *overrides)


@pytest.fixture(autouse=True)
def _store_of_its_own() -> Iterator[None]:
    """`mlflow.set_tracking_uri` lasts in the process and its environment, where later tests would see it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def tiny_scenario() -> Scenario:
    return build_scenario(tiny_settings())


def start_local_ray() -> None:
    """Start the Ray that tests share."""
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    start_local_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def mnist_rows() -> tuple[np.ndarray, np.ndarray]:
    """The first 300 images `(300, 28, 28)` and labels of MNIST, from its own files."""
    raw = SHARED_DATA / "MNIST" / "raw"
    if not raw.is_dir():
        pytest.skip("the files of MNIST are not beside the checkout")
    images = np.fromfile(raw / "train-images-idx3-ubyte", dtype=np.uint8, count=16 + 300 * 784)[16:]
    labels = np.fromfile(raw / "train-labels-idx1-ubyte", dtype=np.uint8, count=8 + 300)[8:]
    return images.reshape(300, 28, 28), labels


@pytest.fixture(scope="session")
def cifar_jpegs() -> dict[str, list[bytes]]:
    """The first 40 files of two classes of CIFAR-10-JPEG, as bytes."""
    archive = SHARED_DATA / "cifar10_jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip("CIFAR-10-JPEG is not beside the checkout")
    found: dict[str, list[bytes]] = {"airplane": [], "automobile": []}
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            name = Path(member.name).parent.name
            if member.isfile() and len(found[name]) < 40:
                found[name].append(members.extractfile(member).read())  # type: ignore[union-attr]
            if len(found["automobile"]) == 40:
                return found
    raise RuntimeError("the archive holds fewer images than expected")
