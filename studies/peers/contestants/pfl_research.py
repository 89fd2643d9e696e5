"""pfl-research: `python -m torch.distributed.run --nproc-per-node N pfl_research.py WORKLOAD RESULT`, with `pfl`.

Every process trains its share of the cohort; they reduce their sums by gloo, pfl's way to use several processors.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from shared import Stopwatch, Workload, write


class Trainable(nn.Module):
    """A network with the loss and the metrics that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.network(inputs)
        return logits

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return the loss to minimise."""
        return nn.functional.cross_entropy(self.train()(inputs), labels)

    def metrics(self, inputs: torch.Tensor, labels: torch.Tensor, **_: Any) -> dict[str, Any]:
        """Return the summed loss of a user."""
        loss = nn.functional.cross_entropy(self(inputs), labels, reduction="sum")
        return {"loss": Weighted(loss.item(), len(labels))}


class Laps(TrainingProcessCallback):  # type: ignore[type-arg]
    """Notes the end of each round, and counts the clients that this process trains in it."""

    def __init__(self, clients: int) -> None:
        self.watch, self.trained, self._clients = Stopwatch(), 0, clients

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        """Note the time, and go on.

        Raises:
            RuntimeError: If this process did not train its share of the cohort.
        """
        self.watch.lap()
        if self.trained * pytorch_ops.distributed.world_size != self._clients:
            raise RuntimeError(f"{self.trained} clients were trained by one process of {self._clients} in all")
        self.trained = 0
        return False, Metrics()


def main(path: Path, result: Path) -> None:
    """Run all rounds of the workload."""
    work = Workload(path)
    laps = Laps(len(work.cohorts[0]))
    network = Trainable(work.model)
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    clients = itertools.chain.from_iterable(work.cohorts)

    def user_of(client: int) -> Dataset:
        laps.trained += 1
        inputs, labels = work.rows[client]
        order = torch.randperm(len(labels))
        return Dataset([inputs[order], labels[order]], user_id=str(client))

    users = FederatedDataset(user_of, lambda: next(clients))
    size = len(work.cohorts[0])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=len(work.cohorts), evaluation_frequency=10**6, train_cohort_size=size,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work.learning_rate, local_batch_size=work.batch_size
        ),
        NNEvalHyperParams(local_batch_size=10_000),
        [laps],
    )  # fmt: skip
    if pytorch_ops.distributed.global_rank == 0:
        params = {key.removeprefix("network."): value for key, value in network.state_dict().items()}
        write(result, laps.watch.seconds, params)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
