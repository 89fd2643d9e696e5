"""FedAvg that draws a random mask in every step: a control of AutoFLIP, whose masks are chosen."""

import torch
from torch import nn

from raysim import seeding
from raysim.budgets.rules import whole_model
from raysim.client.hooks import LocalHooks
from raysim.client.view import ClientView
from raysim.core.inputs import Inputs, predict
from raysim.core.options import Option
from raysim.methods.method import Method
from raysim.methods.options import MethodOptions
from raysim.methods.scores import index_score


def masked_each_step(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Compute every batch's loss, and so its gradient, with a new random share of the weights pruned."""
    seed = seeding.derive_seed(view.workload.seed, "random masks", view.broadcast.round, view.assignment.client)
    generator = torch.Generator().manual_seed(seed)

    def loss(model: nn.Module, inputs: Inputs, targets: torch.Tensor) -> torch.Tensor:
        held = {
            name: value * (torch.rand(value.shape, generator=generator) >= options["prune_share"])
            for name, value in model.named_parameters()
        }
        return view.workload.task.minimised(predict(model, inputs, held), targets)

    return LocalHooks(loss=loss)


RANDOM_MASKS = Method(
    "random masks",
    "control of arXiv 2405.10271",
    score=index_score,
    budget=whole_model,
    local=(masked_each_step,),
    own={"prune_share": Option(0.3, "share of the weights that each step prunes", high=0.999)},
)
