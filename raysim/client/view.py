"""The data, model and settings that clients train with, and the view of one client that local rules read."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from raysim.client.assignments import Assignment, Broadcast
from raysim.client.training import LocalTraining
from raysim.core.inputs import Inputs
from raysim.core.tensors import Params
from raysim.data import datasets
from raysim.data.splits import DataSplits
from raysim.population.population import Population
from raysim.pruning import submodel
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.task.table import TASKS
from raysim.task.task import Task


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Everything that training clients needs for a whole run; it is sent to every actor once.

    Attributes:
        seed: Seed of the experiment.
        data: The rows.
        population: Who owns which of them.
        model: The full model, as it was built.
        plan: Its channel groups.
        local: How every client trains.
        task: The task: its loss is minimised, and its metrics score models.
    """

    seed: int
    data: DataSplits
    population: Population
    model: nn.Module
    plan: ChannelPlan
    local: LocalTraining
    task: Task = TASKS["classification"]

    def at_hand(self) -> "Workload":
        """Return the workload with its data loaded from this machine's disk, if it was not sent.

        Raises:
            SettingError: If the data differ from those that the run was started with.
        """
        return replace(self, data=datasets.at_hand(self.data))


@dataclass(frozen=True, slots=True, eq=False)
class ClientView:
    """The view of one client that a local rule reads; tensors are in the submodel's coordinates.

    Attributes:
        workload: The run's data, model, plan and training settings.
        broadcast: The values that all clients received.
        assignment: The assignment of this client.
        submodels: Skeletons by width.
        model: The submodel that is trained.
        mask: The channels and entries that it keeps.
        cut: The kept indices of each tensor.
        elements: For masks of single entries: which of the submodel's entries are kept, by key; a rule that
            moves the mask while training changes this dictionary.
        start: The global values that training starts from.
        inputs: The client's training inputs, `(rows, ...)`, or several tensors by name.
        targets: Their targets, `(rows, ...)`; in classification the class of each, `(rows,)`.
        augment: Transforms batches of inputs at random, in the order of the client's steps; None: there is none.
    """

    workload: Workload
    broadcast: Broadcast
    assignment: Assignment
    submodels: submodel.SubmodelCache
    model: nn.Module
    mask: Mask
    cut: submodel.Cut
    elements: Params
    start: Params
    inputs: Inputs
    targets: torch.Tensor
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def trainable(self) -> list[str]:
        """Keys of the parameters with a gradient, in the order in which gradients come."""
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    @property
    def learning_rate(self) -> float:
        """Step size of this round."""
        return self.workload.local.learning_rate_in(self.broadcast.round)

    @property
    def num_steps(self) -> int:
        """Optimizer steps the client takes."""
        return replace(self.workload.local, epochs=self.assignment.epochs).num_steps(len(self.targets))

    def extra(self, name: str) -> Params:
        """Return the tensors that the method sends along under a name, cut to the submodel."""
        return self._named(name, self.broadcast.extra)

    def memory(self, name: str) -> Params:
        """Return the client's remembered tensors of a name, cut to the submodel."""
        return self._named(name, self.assignment.memory)

    def _named(self, name: str, tensors: Params) -> Params:
        prefix = f"{name}/"
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        return submodel.extract_params(found, self.cut)

    def narrowed(self, mask: Mask, weights: Params) -> "ClientView":
        """Return the view of a client that continues with a narrower submodel.

        Args:
            mask: Mask of the narrower submodel.
            weights: Its values, in the full model's coordinates.
        """
        cut = submodel.cut_for(self.workload.plan, mask)
        model = self.submodels.module_for(mask, cut)
        submodel.load_params(model, submodel.extract_params(weights, cut))
        start = submodel.extract_params(self.broadcast.params, cut)
        return replace(self, model=model, mask=mask, cut=cut, start=start)
