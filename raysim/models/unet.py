"""U-Net for segmentation."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class UNet(nn.Module):
    """Convolutions on ever smaller feature maps, then on ever larger ones beside those of the same size.

    Source: Ronneberger et al., arXiv 1505.04597; here convolutions are padded, and upsampling is by neighbours.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        for width in channels:
            self.down.append(_convolutions(in_channels, width))
            in_channels = width
        self.up = nn.ModuleList()
        for width in reversed(channels[:-1]):
            self.up.append(_convolutions(in_channels + width, width))
            in_channels = width
        self.outputs = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map `(rows, channels, height, width)` to logits `(rows, classes, height, width)`."""
        passed, hidden = [], images
        for index, layer in enumerate(self.down):
            hidden = layer(hidden if index == 0 else functional.max_pool2d(hidden, 2))
            passed.append(hidden)
        for layer, beside in zip(self.up, reversed(passed[:-1]), strict=True):
            grown = functional.interpolate(hidden, size=beside.shape[2:], mode="nearest")
            hidden = layer(torch.cat([grown, beside], dim=1))
        return torch.as_tensor(self.outputs(hidden))


def _convolutions(in_channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
    )


def unet(input_shape: tuple[int, ...], num_classes: int, channels: Sequence[int] = (16, 32, 64)) -> nn.Module:
    """Return a U-Net without normalization, with as many sizes of feature maps as `channels` names."""
    return UNet(input_shape[0], channels, num_classes)
