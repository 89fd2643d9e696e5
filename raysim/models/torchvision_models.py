"""Build torchvision's classification models, adapted to the channels and the size of the images."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from raysim.core import plugins
from raysim.core.errors import SettingError, nearest_first
from raysim.core.inputs import Inputs, each, predict

PREFIX = "torchvision/"
LARGE_PIXELS = 64
"""Size from which a model stays as published."""
SMALLEST_MAP = 4
"""Smallest height and width of a softened model's last feature map, if two steps are enough."""
MOST_STEPS = 2
SEARCHED_PIXELS = 256
FIXED = ("weights", "num_classes", "progress", "aux_logits")
CONFIGURED = ("width_mult", "reduced_tail", "dilated")
"""Options of MobileNetV3's builders besides the constructor's arguments."""


def names() -> list[str]:
    """Return the names of all classification builders, without the prefix."""
    from torchvision import models

    return list(models.list_models(module=models))


def check_name(name: str) -> None:
    """Raise SettingError if torchvision has no such classification model."""
    known = names()
    if name.removeprefix(PREFIX) not in known:
        nearest = ", ".join(PREFIX + other for other in nearest_first(name.removeprefix(PREFIX), known)[:5])
        raise SettingError(f"model.name={name!r} is unknown; nearest of torchvision's {len(known)}: {nearest}")


def build(name: str, options: dict[str, Any], input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a model for inputs `(channels, height, width)`; fresh weights come from torch's default generator.

    From 64 pixels on a model is as published, if it runs. Otherwise a model whose first convolution has a stride is
    *softened*: at most twice, the first remaining halving of the map is undone (stride 2 becomes 1, stride 4 becomes
    2, a pooling is dropped), until the last feature map has 4 x 4 pixels. A first convolution wider than 3 x 3
    becomes 3 x 3, a patch embedding as wide as its stride shrinks with it. At 32 pixels this is the usual ResNet for
    small images: a 3 x 3 stem of stride 1 without pooling. Models that start without a stride (VGG) do not change.
    The patches of a vision transformer are halved until there are 4 x 4. If images do not have three channels, the
    first convolution is replaced.

    Raises:
        SettingError: If an option is not allowed, or the model does not accept the size; names the smallest one.
    """
    check_name(name)
    for option in options:
        if option in FIXED:
            raise SettingError(f"model.options.{option}={options[option]!r} is not allowed: raysim sets it")
    model = _adapted(name, options, input_shape, num_classes)
    problem = problem_of(model, input_shape, num_classes)
    if problem is not None:
        size = " x ".join(str(pixels) for pixels in input_shape[1:])
        raise SettingError(
            f"model.name={name!r} does not accept images of {size} pixels ({problem}); "
            f"{_smallest(name, options, input_shape, num_classes)}"
        )
    return model


def _adapted(name: str, options: dict[str, Any], input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    from torchvision import models

    own = name.removeprefix(PREFIX)
    size = max(input_shape[1:])
    arguments = dict(options)
    if own in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": False, "init_weights": False, **arguments}
    if own.startswith("maxvit"):
        arguments = {"input_size": tuple(input_shape[1:]), **arguments}
    try:
        model: nn.Module = models.get_model(own, weights=None, num_classes=num_classes, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if own.startswith("maxvit") and not options:
            raise _maxvit_error(name, input_shape) from None
        raise SettingError(f"model.options={options!r} is not allowed for model.name={name!r}: {error}") from None
    _refuse_swallowed(name, model, options)
    if own.startswith("vit_"):
        _fit_patches(model, size)
    elif not own.startswith("maxvit") and (
        min(input_shape[1:]) < LARGE_PIXELS or problem_of(model, (3, *input_shape[1:]), num_classes)
    ):
        _soften(model, tuple(input_shape[1:]))
    if input_shape[0] != 3:
        first = next(key for key, module in model.named_modules() if isinstance(module, nn.Conv2d))
        convolution = model.get_submodule(first)
        assert isinstance(convolution, nn.Conv2d)
        model.set_submodule(first, _like(convolution, in_channels=input_shape[0]))
    return model


def _refuse_swallowed(name: str, model: nn.Module, options: dict[str, Any]) -> None:
    """Raise SettingError for options that a constructor with `**kwargs` would ignore."""
    parameters = inspect.signature(type(model).__init__).parameters
    if all(parameter.kind != inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [*list(parameters)[1:-1], *(CONFIGURED if name.startswith(f"{PREFIX}mobilenet_v3") else ())]
    for option, value in options.items():
        if option not in known:
            raise SettingError(
                f"model.options.{option}={value!r} is unknown; model.name={name!r} takes: "
                f"{', '.join(nearest_first(option, known))}"
            )


def _maxvit_error(name: str, input_shape: tuple[int, ...]) -> SettingError:
    size = " x ".join(str(pixels) for pixels in input_shape[1:])
    return SettingError(
        f"model.name={name!r} does not accept images of {size} pixels: its attention windows are 7 x 7; "
        "smallest size: 224 x 224, then multiples; data.transform.resize changes the size"
    )


def _like(old: nn.Conv2d, **changes: Any) -> nn.Conv2d:
    """Return a new convolution with some other arguments, initialised as in He et al. (2015)."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    arguments = {name: getattr(old, name) for name in names} | {"bias": old.bias is not None}
    fresh = nn.Conv2d(**(arguments | changes), device=old.weight.device)
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    if fresh.bias is not None:
        nn.init.zeros_(fresh.bias)
    return fresh


def _fit_patches(model: Any, size: int) -> None:
    """Set a vision transformer's image size, and halve its patches until they fit and there are 4 x 4."""
    patch = int(model.patch_size)
    while patch > 2 and patch % 2 == 0 and (size // patch < SMALLEST_MAP or size % patch):
        patch //= 2
    model.image_size = size // patch * patch  # it refuses images of another size
    if patch != model.patch_size:
        model.conv_proj = _like(model.conv_proj, kernel_size=patch, stride=patch)
        model.patch_size = patch
    model.seq_length = (size // patch) ** 2 + 1
    positions = torch.empty(1, model.seq_length, model.hidden_dim, device=model.conv_proj.weight.device)
    model.encoder.pos_embedding = nn.Parameter(positions.normal_(std=0.02))


def _soften(model: nn.Module, size: tuple[int, ...]) -> None:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or _stride(first) == 1:
        return
    for _ in range(MOST_STEPS):
        halvings, last = _halvings(model, size)
        if last >= (SMALLEST_MAP if min(size) < LARGE_PIXELS else 1) or not halvings:
            return
        side = halvings[0][1]
        for key in [key for key, seen in halvings if seen == side]:  # a block's shortcut halves the same map
            model.set_submodule(key, _undone(model.get_submodule(key)))


def _undone(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Conv2d):
        return nn.Identity()
    stride = _stride(layer) // 2
    if layer.kernel_size == layer.stride:
        return _like(layer, kernel_size=stride, stride=stride)
    if max(layer.kernel_size) > 3 and layer.groups == 1:
        return _like(layer, kernel_size=3, stride=stride, padding=1)
    layer.stride = (stride, stride)
    return layer


def _stride(layer: nn.Module) -> int:
    stride = getattr(layer, "stride", 1)
    return int(stride if isinstance(stride, int) else max(stride))


def _halvings(model: nn.Module, size: tuple[int, ...]) -> tuple[list[tuple[str, int]], int]:
    """Return the layers that shrink the map, in the order of a forward pass, and the side of the last map.

    Each layer is given with the side of its input; the last side is 0 where the model does not run.
    """
    halvings: list[tuple[str, int]] = []
    last = [0]

    def watch(key: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen = min(inputs[0].shape[-2:])
            if _stride(layer) > 1:
                halvings.append((key, seen))
            if seen > 1 or last[0] <= 1:  # squeeze-and-excitation reads a single pixel
                last[0] = min(output.shape[-2:])

        return hook

    watched = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    handles = [
        layer.register_forward_hook(watch(key)) for key, layer in model.named_modules() if isinstance(layer, watched)
    ]
    try:
        with _still(model):
            model(_zeros(model, (3, *size)))
    except RuntimeError:
        last[0] = 0
    finally:
        for handle in handles:
            handle.remove()
    return halvings, last[0]


def problem_of(
    model: nn.Module, input_shape: tuple[int, ...], num_classes: int, path: str = "", example: Inputs | None = None
) -> str | None:
    """Return why a model cannot score two inputs, by default images of zeros. None: it can.

    With a path the reason names the line of the user's code at it.
    """
    try:
        with _still(model):
            inputs = _zeros(model, input_shape) if example is None else each(torch.clone, example)
            output = predict(model, inputs)
    except Exception as error:
        if path:
            return plugins.described(error, path)
        return str(error).split("\n")[0].removesuffix(".") or type(error).__name__
    if not isinstance(output, torch.Tensor) or output.shape != (2, num_classes):
        form = str(tuple(output.shape)) if isinstance(output, torch.Tensor) else type(output).__name__
        return f"two inputs give {form} instead of {(2, num_classes)}"
    return None


def _smallest(name: str, options: dict[str, Any], input_shape: tuple[int, ...], num_classes: int) -> str:
    """Describe the smallest square size that the model accepts, found without weights."""
    below, works = min(input_shape[1:]), SEARCHED_PIXELS

    def runs(pixels: int) -> bool:
        shape = (input_shape[0], pixels, pixels)
        with torch.device("meta"):
            return problem_of(_adapted(name, options, shape, num_classes), shape, num_classes) is None

    patch_only = name.removeprefix(PREFIX).startswith("vit_")
    sizes = range(below + 1, works + 1)
    if patch_only:
        found = next((pixels for pixels in sizes if runs(pixels)), None)
    else:
        found = works if runs(works) else None
        while found is not None and works - below > 1:
            middle = (below + works) // 2
            below, works = (below, middle) if runs(middle) else (middle, works)
            found = works
    if found is None:
        return f"no larger size up to {SEARCHED_PIXELS} works either"
    return f"smallest size: {found} x {found}; data.transform.resize or pad_to changes the size"


def _zeros(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(2, *shape, device=next(model.parameters()).device)


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Let a model compute in eval mode without gradients, then restore its mode."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
