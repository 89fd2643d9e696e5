"""Refuse a model that cannot be trained or averaged, before any training: train a copy of it for one step."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from raysim.core import plugins, seeding
from raysim.core.errors import SettingError
from raysim.core.inputs import Inputs, each, predict
from raysim.core.tensors import frozen_keys
from raysim.pruning import submodel
from raysim.task.own import check_own
from raysim.task.task import Task


def check(name: str, model: nn.Module, task: Task, inputs: Inputs, targets: torch.Tensor) -> None:
    """Raise SettingError if a model cannot be trained.

    Args:
        name: The model's name in the settings.
        model: The model; it is left unchanged.
        task: The task that it learns.
        inputs: Two inputs or more.
        targets: Their targets.
    """
    problem = next(_problems(name, model, task, inputs, targets), None)
    if problem is not None:
        raise SettingError(f"model.name={name!r} is not allowed: {problem}")


def _problems(name: str, model: nn.Module, task: Task, inputs: Inputs, targets: torch.Tensor) -> Iterator[str]:
    """Yield what forbids to train a model."""
    for key, value in model.state_dict(keep_vars=True).items():
        if (problem := _problem_of_tensor(value)) is not None:
            yield f"{key!r} in its state dict {problem}"
    for module_name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Generator):
                location = f"{module_name}.{attribute}".lstrip(".")
                yield (
                    f"{location!r} is a random generator of its own, so that results would depend on which clients "
                    "an actor trained before; allowed: PyTorch's default generator"
                )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        yield "it has no parameter that is trained; allowed: at least one with requires_grad=True"
    yield from _problems_in_training(name, model, task, each(torch.clone, inputs), targets)


def _problem_of_tensor(value: Any) -> str | None:
    """Return why a state-dict entry cannot be averaged. None: it can."""
    if not isinstance(value, torch.Tensor):
        return f"is a {type(value).__name__}, which cannot be averaged; allowed: tensors"
    if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        return "has no shape before the first forward"
    if value.is_complex():
        return "is complex; allowed: real numbers, as torch.view_as_real gives"
    if value.layout != torch.strided or value.is_quantized:
        return f"has layout {value.layout} and type {value.dtype}; allowed: dense tensors"
    return None


def _problems_in_training(
    name: str, model: nn.Module, task: Task, inputs: Inputs, targets: torch.Tensor
) -> Iterator[str]:
    try:
        twin = copy.deepcopy(model, submodel.without_graphs(model))
    except Exception as error:  # anything that a user's __deepcopy__ raises
        yield f"it cannot be copied: {plugins.described(error, name)}"
        return
    with seeding.torch_seeded(0, "try model"):
        try:
            twin.eval()
            with torch.no_grad():
                scored = predict(twin, each(torch.clone, inputs))
            twin.train()
            outputs = predict(twin, inputs)
        except Exception as error:  # anything that a user's forward raises
            mode = "training" if twin.training else "evaluation"
            yield f"in {mode} mode it raises {plugins.described(error, name)}"
            return
    if _form(outputs) != _form(scored):
        yield f"in training it gives {_form(outputs)}, in evaluation {_form(scored)}; allowed: the same in both"
        return
    needed = None if task.outputs is None else task.outputs(outputs, targets)
    if needed is not None:
        yield f"it gives {_form(outputs)} with task.name={task.name!r}; allowed: {needed}"
        return
    check_own(task, scored, targets)
    try:
        torch.autograd.backward(task.minimised(outputs, targets))
    except Exception as error:  # no gradient, or one that a user's function cannot compute
        yield f"its loss has no gradient: {plugins.described(error, name)}"
    before, after = dict(model.named_parameters()), dict(twin.named_parameters())
    for key in sorted(frozen_keys(model) & after.keys()):
        if not torch.allclose(before[key], after[key], rtol=0, atol=0, equal_nan=True):
            yield (
                f"its forward changes {key!r}, which has requires_grad=False, and such parameters are not averaged; "
                "allowed: a buffer"
            )


def _form(output: Any) -> str:
    return f"a tensor {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
