"""Verbs of methods that keep one mask of single entries for everybody."""

import numpy as np
import torch

from raysim.methods.method import RoundView
from raysim.pruning import elements
from raysim.pruning.masks import Scores
from raysim.pruning.plan import ChannelPlan
from raysim.types import Mask, Params

PREFIX = "elements/"


def remembered(memory: Params) -> dict[str, torch.Tensor]:
    """Return the packed mask in a method's memory, by state-dict key."""
    return {key.removeprefix(PREFIX): bits for key, bits in memory.items() if key.startswith(PREFIX)}


def remember(memory: Params, kept: Params) -> Params:
    """Return the memory with a new mask, from booleans in full coordinates."""
    return {**memory, **{f"{PREFIX}{key}": torch.from_numpy(bits) for key, bits in elements.pack(kept).items()}}


def current(plan: ChannelPlan, memory: Params) -> Params:
    """Return the mask in a method's memory as booleans in full coordinates."""
    return elements.unpack({key: bits.numpy() for key, bits in remembered(memory).items()}, plan.shapes)


def shared_mask(view: RoundView, scores: Scores) -> list[Mask]:
    """Give everybody the remembered mask; all channels stay."""
    dense = np.ones(view.plan.num_units, dtype=np.bool_)
    mask = Mask(dense, {key: bits.numpy() for key, bits in remembered(view.memory).items()})
    return [mask] * len(view.clients)
