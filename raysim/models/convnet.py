"""A convolutional network whose stages, hidden width and normalization are options."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from raysim.models.normalization import group_normalized


def convnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    channels: Sequence[int] = (24, 48, 96),
    hidden: int = 160,
    norm: Literal["none", "batch", "group"] = "none",
) -> nn.Module:
    """Return a 3 x 3 convolution, normalization, ReLU and 2 x 2 pooling per width, then one hidden layer.

    With the defaults, 3 x 32 x 32 inputs and ten classes it has 300,186 parameters. A convolution in front of a
    normalization has no bias.

    Raises:
        ValueError: If there is no width, or the images are too small for the poolings.
    """
    in_channels, height, width = input_shape
    pixels = (height >> len(channels)) * (width >> len(channels))
    if not channels or not pixels:
        smallest = 2 ** len(channels)
        raise ValueError(
            f"channels needs at least one width, and for {len(channels)} of them images of at least {smallest} x "
            f"{smallest} pixels; the data's have {height} x {width}"
        )
    layers: list[nn.Module] = []
    for out_channels in channels:
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=norm == "none"))
        if norm != "none":
            layers.append(nn.BatchNorm2d(out_channels))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        in_channels = out_channels
    layers += [nn.Flatten(), nn.Linear(in_channels * pixels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    model = nn.Sequential(*layers)
    return group_normalized(model) if norm == "group" else model
