"""The ranks of adapters that are bare parameters, which the tracer does not start from."""

import numpy as np
from torch import nn

from raysim.models.adapters import EMBEDDED_DOWN, factors_in
from raysim.pruning.groups import ChannelGroup, Slot


def embedded_ranks(model: nn.Module) -> list[ChannelGroup]:
    """Return the ranks of the adapters of embeddings, A of `(rank, entries)` and B of `(width, rank)`, unproved."""
    named = dict(model.named_parameters())
    found = []
    for down, up in factors_in(named).items():
        if f".{EMBEDDED_DOWN}." in f".{down}" and (rank := named[down].shape[0]) > 1:
            indices = np.arange(rank, dtype=np.int64)[:, None]
            slots = (Slot(down, 0, indices, "weight"), Slot(up, 1, indices, "consumer"))
            found.append(ChannelGroup(down, rank, slots))
    return found
