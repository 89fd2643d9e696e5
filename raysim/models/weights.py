"""Load the start weights of a model from a local state dict."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysim.core.errors import SettingError, nearest_first
from raysim.models import torchvision_models

SUFFIXES = (".pt", ".pth", ".safetensors")
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Heads in torchvision's files that our models lack."""


def check_path(path: str | None) -> None:
    """Raise SettingError if a path is not a local file of a known type."""
    if path is None:
        return
    allowed = f"allowed: a local file ending in {', '.join(SUFFIXES)}, or null"
    if "://" in path:
        raise SettingError(f"model.weights={path!r} is a URL, and raysim downloads no weights; {allowed}")
    if Path(path).suffix not in SUFFIXES:
        raise SettingError(f"model.weights={path!r} is not allowed; {allowed}")
    if not Path(path).is_file():
        raise SettingError(f"model.weights={path!r}: there is no such file; {allowed}")


def load_into(model: nn.Module, path: str, name: str, num_classes: int) -> list[str]:
    """Replace a model's parameters and buffers by those in a file.

    The classifier (the last layer with as many outputs as classes) keeps its new values if the file has another
    number of classes, and so does the first convolution of a torchvision model that was adapted to the images.

    Args:
        model: The model, changed in place.
        path: A state dict, `.pt`, `.pth` or `.safetensors`.
        name: The model's name in the settings.
        num_classes: Number of classes of the data.

    Returns:
        The state-dict keys that keep new values.

    Raises:
        SettingError: If the file cannot be read, or any other key or shape differs.
    """
    check_path(path)
    found, own = _read(path), model.state_dict()
    fresh = []
    for key, tensor in own.items():
        if key not in found:
            if key.endswith(".num_batches_tracked"):  # files older than the counter
                continue
            known = ", ".join(nearest_first(key, found)[:3])
            raise SettingError(f"model.weights={path!r} has no {key!r} {tuple(tensor.shape)}; nearest in it: {known}")
        if tensor.shape != found[key].shape:
            if not _may_differ(model, key, tensor.shape, found[key].shape, name, num_classes):
                raise SettingError(
                    f"model.weights={path!r}: {key!r} is {tuple(found[key].shape)} there and {tuple(tensor.shape)} "
                    f"in model.name={name!r}; only the classifier may differ, in its number of classes"
                )
            fresh.append(key)
    for key in found:
        if key not in own and not key.startswith(AUXILIARY):
            known = ", ".join(nearest_first(key, own)[:3])
            raise SettingError(
                f"model.weights={path!r}: {key!r} {tuple(found[key].shape)} is not in model.name={name!r}; "
                f"nearest in it: {known}"
            )
    with torch.no_grad():
        for key, tensor in own.items():
            if key in found and key not in fresh:
                tensor.copy_(found[key])
    return fresh


def _read(path: str) -> dict[str, torch.Tensor]:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise SettingError(f"model.weights={path!r} cannot be read as a state dict ({reason})") from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise SettingError(
            f"model.weights={path!r} holds no state dict; allowed: tensors by name, `model.state_dict()`"
        )
    return dict(content)


def _may_differ(model: nn.Module, key: str, own: torch.Size, found: torch.Size, name: str, num_classes: int) -> bool:
    layers = [
        (layer_name, layer)
        for layer_name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    outputs = [layer_name for layer_name, layer in layers if layer.weight.shape[0] == num_classes]
    layer_name = key.rpartition(".")[0]
    if outputs and layer_name == outputs[-1] and layer_name == layers[-1][0]:
        return own[1:] == found[1:]
    first = next((layer_name for layer_name, layer in layers if isinstance(layer, nn.Conv2d)), None)
    adapted = name.startswith(torchvision_models.PREFIX) and layer_name == first
    return adapted and len(own) == len(found) and own[0] == found[0]
