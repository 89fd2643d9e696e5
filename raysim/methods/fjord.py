"""FjORD (arXiv 2102.13451): every step trains the first channels of a width drawn anew."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.budgets.rules import widest_of
from raysim.client.hooks import LocalHooks
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core import seeding
from raysim.core.inputs import Inputs, each, predict
from raysim.data.batches import batch_slices
from raysim.methods.method import RoundView
from raysim.methods.options import MethodOptions
from raysim.pruning import masks, submodel
from raysim.pruning.masks import CohortMasks, Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import first_channels

WIDTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def widest_fitting(affordable: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each client the widest of FjORD's widths that it can afford, the narrowest if none fits."""
    return widest_of(WIDTHS, affordable)


def step_widths(seed: int, round: int, client: int, num_steps: int, widest: float) -> NDArray[np.float64]:
    """Return the width of each step, drawn uniformly from those up to the client's widest (eq 2)."""
    allowed = [width for width in WIDTHS if width <= widest]
    return seeding.generator(seed, "widths", round, client).choice(allowed, num_steps)


def widest_drawn(view: RoundView) -> NDArray[np.float64]:
    """Return the widest width each client will draw this round: what it downloads, trains and sends back.

    With `distill` that is its maximum, which teaches in every step.
    """
    if view.options["distill"]:
        return view.keep_ratios
    return np.array([widths.max() for widths in _drawn(view, view.keep_ratios)])


def _drawn(view: RoundView, widest: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [
        step_widths(view.seed, view.round, int(client), steps, float(width))
        for client, steps, width in zip(view.clients, _num_steps(view), widest, strict=True)
    ]


def _num_steps(view: RoundView) -> list[int]:
    return [
        replace(view.local, epochs=int(epochs)).num_steps(int(examples))
        for epochs, examples in zip(view.epochs, view.examples, strict=True)
    ]


def load_of_steps(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count each step at its own width, and with distillation the widest one beside it."""
    flops, activations = np.zeros_like(load.train_flops), np.zeros_like(load.activation_bytes)
    for index, widths in enumerate(_drawn(view, view.budgets)):
        batches = batch_slices(int(view.examples[index]), view.local.batch_size)
        rows = [batch.stop - batch.start for batch in batches] * int(view.epochs[index])
        widest = float(view.budgets[index])
        for num_rows, width in zip(rows, widths.tolist(), strict=True):
            trained = [_mask_of(view.plan, width), _mask_of(view.plan, widest)]
            if not view.options["distill"] or trained[0].kept.sum() == trained[1].kept.sum():
                trained = trained[:1]
            costs = [view.costs.of(mask) for mask in trained]
            flops[index] += num_rows * sum(cost.train_flops for cost in costs)
            activations[index] += num_rows * sum(cost.activation_bytes for cost in costs)
    return replace(load, train_flops=flops, activation_bytes=activations)


def load_of_widest_steps(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count each step at the client's widest width, and with distillation the next lower one beside it."""
    if not view.options["distill"]:
        return load
    flops, activations, rows = load.train_flops.copy(), load.activation_bytes.copy(), view.examples * view.epochs
    for index, widest in enumerate(view.keep_ratios.tolist()):
        narrower = [width for width in WIDTHS if width < widest]
        if narrower:
            cost = view.costs.of(_mask_of(view.plan, narrower[-1]))
            flops[index] += rows[index] * cost.train_flops
            activations[index] += rows[index] * cost.activation_bytes
    return replace(load, train_flops=flops, activation_bytes=activations)


def _mask_of(plan: ChannelPlan, width: float) -> Mask:
    return masks.keep_top(plan, first_channels(plan), width)


def ordered_dropout(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Train each batch on the first ceil(p C) channels of the client's submodel, p the step's width (eq 2).

    With `distill` the widest submodel learns from the labels and teaches the drawn one (section 4.2).
    """
    widest = view.assignment.budget
    round, client = view.broadcast.round, view.assignment.client
    widths = iter(step_widths(view.workload.seed, round, client, view.num_steps, widest).tolist())

    task = view.workload.task

    def loss(model: nn.Module, inputs: Inputs, targets: torch.Tensor) -> torch.Tensor:
        mask = _mask_of(view.workload.plan, next(widths))
        if not options["distill"] or mask.kept.sum() == view.mask.kept.sum():
            return task.minimised(_narrow_forward(view, mask, model, inputs), targets)
        teacher = predict(model, each(torch.clone, inputs))  # a model may change its input
        outputs = _narrow_forward(view, mask, model, inputs)
        taught = task.distillation_for("method.options.distill=True")(outputs, teacher.detach())
        return task.minimised(teacher, targets) + taught

    return LocalHooks(loss=loss)


def _narrow_forward(view: ClientView, mask: Mask, model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Run the first channels of a submodel; gradients flow into its own parameters."""
    cut = submodel.cut_for(view.workload.plan, mask)
    narrow = view.submodels.module_for(mask, cut)
    narrow.train()
    if narrow is model:
        return predict(model, inputs)
    positions = {
        key: {dim: _positions(indices, view.cut.get(key, {}).get(dim)) for dim, indices in dims.items()}
        for key, dims in cut.items()
    }
    own = dict(model.named_parameters())
    views = {name: submodel.take(parameter, positions.get(name, {})) for name, parameter in own.items()}
    return predict(narrow, inputs, views)


def _positions(indices: torch.Tensor, held: torch.Tensor | None) -> torch.Tensor:
    """Return the positions of full-model indices among those that a submodel holds."""
    return indices if held is None else torch.searchsorted(held, indices)
