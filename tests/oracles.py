"""Slow and obvious versions of what raysim computes cleverly, and small networks to try it on."""

import itertools

import numpy as np
import torch
from torch import nn

from raysim.pruning.plan import ChannelPlan
from raysim.types import Mask, Params


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


def random_mask(plan: ChannelPlan, seed: int) -> Mask:
    """Keep a random number of random units of each group, independently, at least one."""
    rng = np.random.default_rng(seed)
    kept = np.zeros(plan.num_units, dtype=np.bool_)
    for units in plan.units.values():
        size = units.stop - units.start
        chosen = rng.permutation(size)[: rng.integers(1, size + 1)]
        kept[units.start + chosen] = True
    return Mask(kept)


def held_entries(plan: ChannelPlan, mask: Mask, params: Params) -> dict[str, torch.Tensor]:
    """Which entries of every tensor a submodel holds, one unit and one slot at a time."""
    held = {key: torch.ones(tensor.shape, dtype=torch.bool) for key, tensor in params.items()}
    for group in plan.groups:
        units = plan.units[group.name]
        for slot, unit in itertools.product(group.slots, range(group.size)):
            if not mask.kept[units.start + unit]:
                for index in slot.indices[unit]:
                    held[slot.key].select(slot.dim, int(index)).fill_(False)
    return held


def filled(
    fill: str, gamma: float, current: torch.Tensor, updates: list[torch.Tensor],
    held: list[torch.Tensor], examples: list[int],
) -> torch.Tensor:  # fmt: skip
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
