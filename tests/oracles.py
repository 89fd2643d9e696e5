"""Slow and obvious versions of raysim's computations, and small networks to test them on."""

import functools

import numpy as np
import torch
import torchvision
from torch import nn

from raysim.core.tensors import Params
from raysim.pruning.groups import ChannelGroups
from raysim.pruning.masks import Mask


class DepthwiseNet(nn.Module):
    """3 -> 8 convolution, depthwise 3 x 3 on 8, pointwise 8 -> 6, linear to 5; on 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 6, 1, bias=False)
        self.classifier = nn.Linear(6 * 64, 5, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.depthwise(self.norm(self.first(inputs)).relu())
        return self.classifier(self.pointwise(hidden).relu().flatten(1))


DEPTHWISE_TRAIN_FLOPS = (
    2 * 64 * (3 * 9) * 8 * 2  # first: forward and weight gradient, no gradient of the images
    + 2 * 64 * 9 * 8 * 3  # depthwise: forward, input and weight gradient
    + 2 * 64 * 8 * 6 * 3  # pointwise
    + 2 * (6 * 64) * 5 * 3  # classifier
)
"""Counted by hand: 2 FLOPs per multiply-accumulate, 64 positions."""


def norm_net(input_shape: tuple[int, ...], num_classes: int, channels: tuple[int, int] = (16, 32)) -> nn.Module:
    """Two convolutions with BatchNorm, a pooling, one linear layer."""
    first, second = channels
    in_channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 2) * (width // 2), num_classes),
    )


class BranchNet(nn.Module):
    """Two convolutions joined by concatenation, one of them also read by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 5, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 3, padding=1)
        self.side = nn.Conv2d(3, 5, 1)
        self.joined = nn.Conv2d(9, 7, 3)
        self.classifier = nn.Linear(7, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        left = (self.left(inputs) + self.side(inputs)).relu()
        both = torch.cat([left, self.right(inputs).tanh()], dim=1)
        return self.classifier(self.joined(both).relu().mean((2, 3)))


class FlippedNet(nn.Module):
    """Reverses its channels, which a tracer takes for an element-wise operation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 8, 3)
        self.classifier = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flipped = self.first(inputs).relu().flip(1)
        return self.classifier(self.second(flipped).relu().mean((2, 3)))


class GroupedNet(nn.Module):
    """A grouped convolution and two GroupNorms that part the same channels differently: units are merged."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.GroupNorm(2, 24)
        self.grouped = nn.Conv2d(24, 18, 3, padding=1, groups=3)
        self.fine = nn.GroupNorm(3, 18)
        self.last = nn.Conv2d(18, 6, 1, groups=2)
        self.classifier = nn.Linear(6 * 64, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.grouped(self.norm(self.first(inputs)).relu())
        return self.classifier(self.last(self.fine(hidden).tanh()).relu().flatten(1))


class GatedNet(nn.Module):
    """Channels that a second layer scales (squeeze and excitation): joined, but not summed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.gate = nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs).relu().mean((2, 3))
        return self.classifier(hidden * self.gate(hidden).sigmoid())


class LayerNormNet(nn.Module):
    """A hidden layer with LayerNorm, then a residual one with a bare parameter that scales its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 64, 12)
        self.norm = nn.LayerNorm(12)
        self.wide = nn.Linear(12, 20)
        self.back = nn.Linear(20, 12)
        self.scale = nn.Parameter(torch.ones(12))
        self.last_norm = nn.RMSNorm(12)
        self.classifier = nn.Linear(12, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        stream = self.first(inputs.flatten(1))
        stream = stream + self.scale * self.back(nn.functional.gelu(self.wide(self.norm(stream))))
        return self.classifier(self.last_norm(stream))


class SharedNet(nn.Module):
    """One convolution used twice under two names, and two heads that are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.again = self.shared
        self.side = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.activation = nn.PReLU(5)
        self.head = nn.Linear(6 * 64, 4)
        self.side_head = nn.Linear(5, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.again(self.shared(self.first(inputs).relu()).relu())
        side = self.activation(self.side(hidden)).mean((2, 3))
        return self.head(hidden.flatten(1)) + self.side_head(side)


class JoinedNet(nn.Module):
    """Branches that are concatenated, one of them twice, and flattened at 6 x 4 pixels into a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=(0, 1), stride=(1, 2))
        self.right = nn.Conv2d(3, 5, 3, padding=(0, 1), stride=(1, 2))
        self.norm = nn.BatchNorm2d(13)
        self.hidden = nn.Linear(13 * 24, 9)
        self.classifier = nn.Linear(9, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        left, right = self.left(inputs), self.right(inputs)
        joined = self.norm(torch.cat([left, right, left], dim=1)).relu()
        return self.classifier(self.hidden(joined.flatten(1)).relu())


def random_mask(plan: ChannelGroups, seed: int) -> Mask:
    """Keep a random number of random units of each group, independently, at least one."""
    rng = np.random.default_rng(seed)
    kept = np.zeros(plan.num_units, dtype=np.bool_)
    for units in plan.units.values():
        size = units.stop - units.start
        chosen = rng.permutation(size)[: rng.integers(1, size + 1)]
        kept[units.start + chosen] = True
    return Mask(kept)


def held_entries(plan: ChannelGroups, mask: Mask, params: Params) -> dict[str, torch.Tensor]:
    """Which entries of every tensor a submodel holds, one slot at a time."""
    held = {key: torch.ones(tensor.shape, dtype=torch.bool) for key, tensor in params.items()}
    for group in plan.groups:
        dropped = ~mask.kept[plan.units[group.name]]
        for slot in group.slots:
            held[slot.key].index_fill_(slot.dim, torch.from_numpy(slot.indices[dropped].ravel()), False)
    return held


def filled(
    fill: str,
    gamma: float,
    current: torch.Tensor,
    updates: list[torch.Tensor],
    held: list[torch.Tensor],
    examples: list[int],
) -> torch.Tensor:
    """The fill rules of the specification, entry by entry in float64."""
    total = sum(examples)
    result = current.double().clone().flatten()
    for entry in range(result.numel()):
        holders = [k for k in range(len(examples)) if held[k].flatten()[entry]]
        weighted = sum(examples[k] / total * updates[k].flatten()[entry].double() for k in holders)
        share = sum(examples[k] for k in holders) / total
        if fill == "zero":
            result[entry] = sum(
                examples[k] / total * (current.flatten()[entry].double() + updates[k].flatten()[entry].double())
                for k in holders
            )
        elif holders:
            exponent = {"global": 0.0, "holders": 1.0, "damped": gamma}[fill]
            result[entry] += weighted / share**exponent
    return result.view(current.shape)


def norms_over_kept_channels(model: nn.Module, held: dict[str, torch.Tensor]) -> None:
    """Make norms that mix channels take their statistics over the held ones only; the others come out zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm) or type(module).__name__ == "RMSNorm":
            module.register_forward_hook(functools.partial(_renorm, held[f"{name}.weight"]))


def _renorm(
    held: torch.Tensor, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    (inputs,) = args
    dim = 1 if isinstance(module, nn.GroupNorm | torchvision.models.convnext.LayerNorm2d) else inputs.dim() - 1
    result = torch.zeros_like(output).movedim(dim, 0)
    channels = inputs.movedim(dim, 0)
    parts = module.num_groups if isinstance(module, nn.GroupNorm) else 1
    for part in torch.arange(len(held)).chunk(parts):
        kept = part[held[part]]
        values = channels[kept]
        over = (0, *range(2, values.dim())) if isinstance(module, nn.GroupNorm) else 0
        eps = module.eps or torch.finfo(values.dtype).eps
        if type(module).__name__ != "RMSNorm":
            values = values - values.mean(over, keepdim=True)
        values = values / (values.square().mean(over, keepdim=True) + eps).sqrt()
        shape = [-1] + [1] * (values.dim() - 1)
        bias = getattr(module, "bias", None)
        shift = 0 if bias is None else bias[kept].view(shape)
        result[kept] = values * module.weight[kept].view(shape) + shift
    return result.movedim(0, dim)
