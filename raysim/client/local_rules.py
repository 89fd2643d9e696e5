"""Apply `LocalRules` during a client's training: scaled outputs, own classes, masks of single entries."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from raysim.client.hooks import LocalHooks
from raysim.client.training import batch_loss
from raysim.client.view import ClientView
from raysim.core.tensors import Params
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.recurrent import LayerStates


def own_classes_of(view: ClientView) -> torch.Tensor | None:
    """Return which classes a client has rows of, `(classes,)`; None: its rules do not depend on that."""
    if not view.broadcast.rules.own_classes_only:
        return None
    own = view.workload.task.own_classes_for("own_classes_only=True")
    return own.owned(view.targets, view.workload.data.num_classes)


def standing_hooks(view: ClientView, own_classes: torch.Tensor | None) -> list[LocalHooks]:
    """Return the hooks for a client's own classes (HeteroFL) and for masks of single entries."""
    hooks = []
    if own_classes is not None:
        own = view.workload.task.own_classes_for("own_classes_only=True")
        hooks.append(LocalHooks(loss=batch_loss(own.loss(own_classes))))
    if view.elements:
        hooks.append(
            LocalHooks(
                correct=(partial(kept_gradients, view.trainable, view.elements),),
                after_step=(partial(zero_pruned, view.model, view.elements),),
            )
        )
    return hooks


def kept_gradients(names: Sequence[str], elements: Params, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """Set the gradients of pruned entries to zero, so that they enter neither clipping nor momentum."""
    return [
        gradient * elements[name] if name in elements else gradient
        for name, gradient in zip(names, gradients, strict=True)
    ]


def zero_pruned(model: nn.Module, elements: Params) -> None:
    """Set the entries of a model that are not kept to zero, in place."""
    with torch.no_grad():
        for key, tensor in model.state_dict(keep_vars=True).items():
            if key in elements:
                tensor.mul_(elements[key])


def _scaled(layer: nn.Module, output: Any, factor: float) -> Any:
    """Return what a layer passes on, multiplied: of a recurrent layer not its cells, of attention not its weights."""
    if isinstance(output, torch.Tensor):
        return output * factor
    if isinstance(output, PackedSequence):
        return PackedSequence(output.data * factor, *output[1:])
    if isinstance(output, LayerStates):
        return LayerStates([state * factor for state in output])
    first, second = output
    if isinstance(layer, nn.LSTM):
        second = (_scaled(layer, second[0], factor), second[1])
    elif isinstance(layer, nn.RNNBase):
        second = _scaled(layer, second, factor)
    return _scaled(layer, first, factor), second


def _is_scaled(module: nn.Module) -> bool:
    """Whether a module that has a cut weight is a layer: not one that holds layers and a parameter of its own."""
    is_layer = isinstance(module, nn.MultiheadAttention) or not list(module.children())
    return is_layer and not isinstance(module, nn.RNNCellBase)


@contextmanager
def scaled_outputs(model: nn.Module, plan: ChannelPlan, factor: float) -> Iterator[None]:
    """Multiply the output of every layer whose channels are cut, while the context lasts (HeteroFL's scaler).

    Recurrent cells are left out: what they pass on comes back to them.
    """
    if factor == 1.0:
        yield
        return

    def scale(layer: nn.Module, _inputs: Any, output: Any) -> Any:
        return _scaled(layer, output, factor)

    keys = [slot.key for _, slot in plan.slots() if slot.role == "weight" and len(plan.shapes[slot.key]) > 1]
    owners = [model.get_submodule(key.rpartition(".")[0]) for key in keys]
    distinct = {id(layer): layer for layer in owners if _is_scaled(layer)}  # a shared layer has several keys
    handles = [layer.register_forward_hook(scale) for layer in distinct.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
