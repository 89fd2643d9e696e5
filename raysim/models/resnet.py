"""Residual networks for small images; that of depth 32 has the size in CA-HFP's table."""

from typing import Literal

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al., arXiv 1512.03385)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, channels, h / stride, w / stride)`."""
        hidden = torch.relu(self.norm1(self.conv1(inputs)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


def resnet(input_shape: tuple[int, ...], num_classes: int, depth: Literal[8, 20, 32, 56] = 20) -> nn.Module:
    """Return 3 stages of n basic blocks with 16, 32 and 64 channels and 1 x 1 projections; `depth` is 6 n + 2.

    With 3 x 32 x 32 inputs and ten classes: 78,042, 272,474, 466,906 and 855,770 parameters.

    Source: He et al., arXiv 1512.03385, section 4.2, which has no projections (2,752 parameters here).
    """
    model = nn.Sequential()
    stem = nn.Sequential(nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    model.add_module("stem", stem)
    channels = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            model.add_module(f"stage{stage + 1}_block{block + 1}", BasicBlock(channels, width, stride))
            channels = width
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Linear(64, num_classes))
    return model


def resnet32(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the residual network of depth 32: 466 K parameters.

    Source: CA-HFP, arXiv 2603.12591, Table I.
    """
    return resnet(input_shape, num_classes, 32)
