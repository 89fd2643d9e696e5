"""DapperFL (NeurIPS 2024): each client fuses its weights with the global ones, prunes them and continues."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from raysim.client.hooks import LocalHooks, compose
from raysim.client.training import train
from raysim.client.view import ClientView
from raysim.clock.timing import CohortLoad
from raysim.core.inputs import Inputs, predict
from raysim.core.tensors import Params, frozen_keys
from raysim.methods.method import RoundView
from raysim.methods.options import MethodOptions
from raysim.pruning import masks
from raysim.pruning.masks import CohortMasks, Mask
from raysim.pruning.significance import l1_norms


def fuse_and_prune(view: ClientView, order: np.random.Generator) -> tuple[ClientView, int]:
    """Train one epoch on the full model, fuse with the global one, keep the largest l1 norms (eq 2 to 5).

    Returns:
        The view of the submodel to continue with, and the epochs trained.
    """
    workload = view.workload
    one_epoch = replace(workload.local, epochs=1)
    hooks = compose([hook(view) for hook in view.broadcast.rules.hooks])
    rate, augment = view.learning_rate, view.augment
    train(view.model, view.inputs, view.targets, workload.task, one_epoch, rate, order, hooks, augment)
    fused = fuse(view.start, dict(view.model.state_dict()), view.broadcast.round)
    fused |= {key: view.start[key] for key in frozen_keys(view.model)}  # a mean of equal numbers may be rounded
    mask = masks.keep_top(workload.plan, l1_norms(workload.plan, fused), view.assignment.keep_ratio)
    return view.narrowed(mask, fused), 1


def fuse(before: Params, trained: Params, round: int) -> Params:
    """Return alpha w_global + (1 - alpha) w_local with alpha = max(0.8^t 0.9, 0.1), t the rounds before this one.

    In round 1 the local weights stay as they are, as in the authors' code.
    """
    alpha = max(0.8 ** (round - 1) * 0.9, 0.1) if round > 1 else 0.0
    return {
        key: alpha * before[key] + (1 - alpha) * value if value.is_floating_point() else value.clone()
        for key, value in trained.items()
    }


def feature_penalty(view: ClientView, options: MethodOptions, factor: float = 0.01) -> LocalHooks:
    """Add 0.01 times the mean squared norm of the classifier's input to the loss (eq 8)."""
    outputs, task = view.workload.plan.outputs, view.workload.task
    layer = None if outputs is None else outputs.name

    def loss(model: nn.Module, inputs: Inputs, targets: torch.Tensor) -> torch.Tensor:
        features: list[torch.Tensor] = []

        def keep_input(_layer: nn.Module, inputs: Any) -> None:
            features.append(inputs[0])

        if layer is None:
            return task.minimised(predict(model, inputs), targets)
        handle = model.get_submodule(layer).register_forward_pre_hook(keep_input)
        try:
            found = predict(model, inputs)
        finally:
            handle.remove()
        return task.minimised(found, targets) + factor * features[0].flatten(1).pow(2).sum(1).mean()

    return LocalHooks(loss=loss)


def whole_model_down(view: RoundView, scores: object) -> list[Mask]:
    """Send every client the full model."""
    dense = Mask.whole(view.plan)
    return [dense] * len(view.clients)


def largest_norms(view: RoundView, scores: object) -> list[Mask]:
    """Keep the largest l1 norms of the global model, as clients keep those of their fused ones."""
    return masks.keep_top_for_cohort(view.plan, l1_norms(view.plan, view.params), view.keep_ratios)


def load_of_phases(view: RoundView, chosen: CohortMasks, load: CohortLoad) -> CohortLoad:
    """Count one epoch of the full model, the other epochs and the upload of the submodel, and its mask."""
    zeros = np.zeros(view.plan.num_units)
    submodels = [masks.keep_top(view.plan, zeros, float(ratio)) for ratio in view.keep_ratios]
    small = [view.costs.of(mask) for mask in submodels]
    flops = np.array([cost.train_flops for cost in small], dtype=np.int64)
    activations = np.array([cost.activation_bytes for cost in small], dtype=np.int64)
    dense, more_epochs = view.costs.dense, view.epochs - 1
    mask_bytes = np.where(view.keep_ratios < 1, -(-view.plan.num_units // 8), 0)
    return replace(
        load,
        down_bytes=np.full(len(small), dense.model_bytes, dtype=np.int64),
        up_bytes=np.array([view.update_bytes(mask) for mask in submodels]) + mask_bytes,
        train_flops=view.examples * (dense.train_flops + more_epochs * flops),
        activation_bytes=view.examples * (dense.activation_bytes + more_epochs * activations),
    )
