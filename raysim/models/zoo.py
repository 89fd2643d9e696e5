"""Build models: those of a table, torchvision's, and users' own."""

import inspect
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn

from raysim.core import memory, plugins, seeding
from raysim.core.errors import SettingError, nearest_first, reason_of, shortened
from raysim.core.inputs import Inputs
from raysim.models import huggingface, torchvision_models
from raysim.models.convnet import convnet
from raysim.models.recurrent import char_lstm, gru
from raysim.models.resnet import resnet, resnet32
from raysim.models.transformer import transformer
from raysim.models.unet import unet
from raysim.models.vgg import vgg16
from raysim.models.wide_hidden import femnist_cnn, two_cnn
from raysim.task.targets import KINDS


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of the table.

    Attributes:
        build: `(input_shape, num_classes, **options)`; it also gets `vocabulary` and `task` if it names them.
        keep_whole: Layers that are never cut by default.
        min_pixels: Smallest height and width of images.
        inputs: The kind of inputs that it reads.
    """

    build: Callable[..., nn.Module]
    keep_whole: tuple[str, ...] = ()
    min_pixels: int = 1
    inputs: Literal["images", "token ids", "token ids or series", "any floats"] = "images"


@dataclass(frozen=True, slots=True, eq=False)
class DataForm:
    """The form of the data that a model is built for.

    Attributes:
        input_shape: Shape of one input: of images channels, height, width.
        num_classes: Number of outputs of a row or position: classes, labels, numbers, or words of a vocabulary.
        vocabulary: Number of token ids of integer inputs; None: there are none.
        task: Name of the task.
        example: Two inputs; None: images of zeros.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    vocabulary: int | None = None
    task: str = "classification"
    example: Inputs | None = None

    def given_to(self, builder_parameters: Collection[str]) -> dict[str, Any]:
        """Return the arguments of a builder, by the names of its parameters."""
        return {name: getattr(self, name) for name in GIVEN if name in builder_parameters}


def cnn(
    input_shape: tuple[int, ...], num_classes: int, channels: Sequence[int] = (32, 64), hidden: int = 128
) -> nn.Module:
    """Return two 3 x 3 convolutions, a pooling, one hidden layer; no normalization."""
    if len(channels) != 2:
        raise ValueError(f"channels needs 2 widths, not {len(channels)}")
    first, second = channels
    in_channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 2) * (width // 2), hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def cnn_dropout(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the network with dropout that Reddi et al. train on EMNIST (arXiv 2003.00295, table 4)."""
    in_channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


def lenet(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return LeNet-5 (LeCun et al., 1998) with ReLU and max pooling."""
    in_channels, height, width = input_shape
    pooled = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * pooled, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def mlp(input_shape: tuple[int, ...], num_classes: int, hidden: Sequence[int] = (200, 200)) -> nn.Module:
    """Return fully connected layers with ReLU between them; `hidden: []` is a linear model."""
    sizes = [int(torch.Size(input_shape).numel()), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def check_name(name: str) -> None:
    """Raise SettingError if the name is unknown."""
    if plugins.is_dotted(name):
        plugins.load("model.name", name)
    elif name.startswith(torchvision_models.PREFIX):
        torchvision_models.check_name(name)
    elif name.startswith(huggingface.PREFIX):
        huggingface.check_name(name)
    elif name not in MODELS:
        known = ", ".join(nearest_first(name, MODELS))
        raise SettingError(
            f"model.name={name!r} is unknown; known: {known}, torchvision/<name> as in torchvision/resnet18, "
            "huggingface:<name> as in huggingface:gpt2, or a dotted path as in my_pkg.net:build"
        )


def kept_whole(name: str) -> list[str]:
    """Return the layers of a model that are never cut by default; only models of the table have such layers."""
    return list(MODELS[name].keep_whole) if name in MODELS else []


def build(name: str, options: dict[str, Any], form: DataForm, seed: int) -> nn.Module:
    """Build a model with weights drawn from the seed.

    Args:
        name: A name of `MODELS`, `torchvision/<builder>`, or the dotted path of a callable that returns a module;
            it gets `input_shape`, `num_classes`, `vocabulary` and `task` if its signature names them.
        options: Keyword arguments of the builder.
        form: The form of the data.
        seed: Seed of the experiment.

    Raises:
        SettingError: If the name or an option is unknown, or the input does not fit the model.
    """
    check_name(name)
    _check_size(name, options, form)
    with seeding.torch_seeded(seed, "model"):
        if plugins.is_dotted(name):
            return _from_path(name, options, form)
        if name.startswith(torchvision_models.PREFIX):
            _check_inputs(name, "images", form)
            return torchvision_models.build(name, options, form.input_shape, form.num_classes)
        if name.startswith(huggingface.PREFIX):
            return huggingface.build(name, options, form.num_classes, form.vocabulary, form.task)
        return _from_table(name, options, form)


def _check_size(name: str, options: dict[str, Any], form: DataForm) -> None:
    """Refuse a model of the table whose parameters do not fit into memory; on the meta device nothing is allocated.

    Raises:
        SettingError: If they do not fit, with gradients and a copy, or an option is not allowed.
    """
    if name not in MODELS or not options:
        return
    with torch.device("meta"):
        model = _from_table(name, options, form)
    num_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    memory.check_fits("model.options", options, 3 * num_bytes)


def _from_path(name: str, options: dict[str, Any], form: DataForm) -> nn.Module:
    builder = plugins.load("model.name", name)
    if not callable(builder):
        raise SettingError(f"model.name={name!r} is a {type(builder).__name__}; allowed: a function or class")
    named = plugins.parameters_of("model.name", name, builder)
    given = {key: value for key, value in form.given_to(named).items() if key not in options}
    model = plugins.call("model.name", name, builder, given, options)
    if not isinstance(model, nn.Module):
        raise SettingError(f"model.name={name!r} gives a {type(model).__name__}; allowed: a torch.nn.Module")
    if isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
        model = original  # of torch.compile, which would compile anew for every width
    if not list(model.parameters()):
        raise SettingError(f"model.name={name!r} has no parameters; allowed: a model that can be trained")
    if not KINDS[form.task].has_classes:
        return model  # tried with its loss, once both are known
    if problem := torchvision_models.problem_of(model, form.input_shape, form.num_classes, name, form.example):
        size = " x ".join(str(each) for each in form.input_shape)
        raise SettingError(f"model.name={name!r} does not accept inputs of {size}: {problem}")
    return model


def _from_table(name: str, options: dict[str, Any], form: DataForm) -> nn.Module:
    entry = MODELS[name]
    parameters = inspect.signature(entry.build).parameters
    known = [option for option in parameters if option not in GIVEN]
    for option in options:
        if option not in known:
            allowed = ", ".join(nearest_first(option, known)) or "none"
            raise SettingError(
                f"model.options.{option}={options[option]!r} is unknown; model.name={name!r} takes: {allowed}"
            )
        _check_option(option, options[option], parameters[option].annotation)
    _check_inputs(name, entry.inputs, form)
    if entry.inputs == "images" and min(form.input_shape[1:]) < entry.min_pixels:
        raise SettingError(
            f"model.name={name!r} needs images of at least {entry.min_pixels} x {entry.min_pixels} pixels, "
            f"the data's have {' x '.join(str(size) for size in form.input_shape[1:])}"
        )
    try:
        return entry.build(**form.given_to(parameters), **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"model.options={shortened(options)} is not allowed for model.name={name!r}: {reason_of(error)}"
        ) from None


def _check_inputs(name: str, wanted: str, form: DataForm) -> None:
    """Refuse inputs that a model does not read.

    Raises:
        SettingError: If the data have others.
    """
    if isinstance(form.example, Mapping):
        found = "several inputs by name"
    elif form.vocabulary is not None:
        found = "token ids"
    else:
        found = {3: "images", 2: "series"}.get(len(form.input_shape), "vectors")
    if not _reads(wanted, found):
        shape = " x ".join(str(size) for size in form.input_shape)
        near = [other for other, entry in MODELS.items() if _reads(entry.inputs, found)]
        raise SettingError(
            f"model.name={name!r} reads {wanted}, and the data's inputs are {found} of {shape}; allowed: "
            f"{', '.join([*near, 'a model of your own'])}"
        )


def _reads(wanted: str, found: str) -> bool:
    return found in ("images", "series", "vectors") if wanted == "any floats" else found in wanted


def _check_option(name: str, value: object, annotation: object) -> None:
    """Values are of a few, or they are widths: whole numbers from 1, or lists of them."""
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        is_allowed = any(type(value) is type(each) and value == each for each in choices)
        near = nearest_first(value, choices) if isinstance(value, str) else choices
        allowed = ", ".join(str(each) for each in near)
    else:
        values = value if annotation is not int else [value]
        is_allowed = isinstance(values, list) and all(type(each) is int and 1 <= each < 2**31 for each in values)
        allowed = "a whole number from 1" if annotation is int else "a list of whole numbers from 1"
    if not is_allowed:
        raise SettingError(f"model.options.{name}={shortened(value)} is not allowed; allowed: {allowed}")


RESIDUAL_STREAM = ("stem.*", "*.conv2", "*.shortcut.*")
"""Layers of `resnet` whose channels its residual additions join."""
GIVEN = ("input_shape", "num_classes", "vocabulary", "task")
"""Arguments of builders that follow from the data."""

MODELS: dict[str, ModelEntry] = {
    "cnn": ModelEntry(cnn, min_pixels=2),
    "cnn-dropout": ModelEntry(cnn_dropout, min_pixels=6),
    "convnet": ModelEntry(convnet, min_pixels=2),
    "lenet": ModelEntry(lenet, min_pixels=12),
    "mlp": ModelEntry(mlp, inputs="any floats"),
    "vgg16": ModelEntry(vgg16, keep_whole=("classifier.*",), min_pixels=32),
    "resnet": ModelEntry(resnet, keep_whole=RESIDUAL_STREAM),
    "resnet32": ModelEntry(resnet32, keep_whole=RESIDUAL_STREAM),
    "two-cnn": ModelEntry(two_cnn, min_pixels=6),
    "femnist-cnn": ModelEntry(femnist_cnn, min_pixels=6),
    "unet": ModelEntry(unet, min_pixels=4),
    "char-lstm": ModelEntry(char_lstm, inputs="token ids or series"),
    "gru": ModelEntry(gru, inputs="token ids or series"),
    "transformer": ModelEntry(transformer, inputs="token ids"),
}
