"""Decide which clients are trained together as one batch of models, by a rule that measures no time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from raysim.client.assignments import Assignments
from raysim.core.errors import SettingError
from raysim.data.batches import num_batches

LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.ReLU6,
    nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softmax, nn.LogSoftmax,
    nn.Hardtanh, nn.Hardswish, nn.Mish, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
"""Layers that compute the same in a batch of models: they draw no random numbers and keep no state."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FEWEST_PACKS = 4
"""Least number of packs that a cohort is cut into, so that as many actors have work."""
MOST_CLIENTS = 128
"""Largest number of clients in a pack; larger packs gain little."""
MOST_ENTRIES = 2**22
"""Largest number of parameters of all models of a pack, and of entries of all its rows: 16 MB each."""


def obstacle(model: nn.Module, convolutions: bool = True) -> str | None:
    """Return why submodels of a model cannot be trained together; None: they can.

    Args:
        model: The full model.
        convolutions: Whether convolutions are allowed; packed, they are slower on a CPU.
    """
    if len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False))):
        return "layers share parameters"
    if any(True for _ in model.buffers()):
        return "it has buffers, such as BatchNorm's running statistics"
    for layer in model.modules():
        if isinstance(layer, CONVOLUTIONS):
            if not convolutions:
                return f"it has a {type(layer).__name__}, slower together than one by one on a CPU"
        elif not (type(layer) in LAYERS or type(layer) is nn.Sequential):
            return f"a {type(layer).__name__} may draw random numbers or remember something"
    return None


def pack_size(
    wanted: str | int, model: nn.Module, cohort_size: int, row_entries: int = 0, on_gpu: bool = False
) -> int:
    """Return the largest number of clients of equal width and steps in a pack; 1: each is trained by itself.

    Args:
        wanted: `auto` or a number.
        model: The full model.
        cohort_size: Clients per round.
        row_entries: Entries of all training rows of the largest client.
        on_gpu: Whether clients are trained on a GPU, where packed convolutions are faster, too.

    Raises:
        SettingError: If a number above 1 is wanted, and the model cannot be trained in packs.
    """
    if isinstance(wanted, int):
        reason = obstacle(model) if wanted > 1 else None
        if reason is not None:
            raise SettingError(
                f"training.pack={wanted} is not allowed: models cannot be trained together, since {reason}; "
                "allowed: auto, 1"
            )
        return wanted
    if obstacle(model, convolutions=on_gpu) is not None:
        return 1
    entries = max(row_entries, sum(parameter.numel() for parameter in model.parameters()))
    packs = max(FEWEST_PACKS, -(-cohort_size // MOST_CLIENTS), -(-cohort_size * entries // MOST_ENTRIES))
    return max(1, -(-cohort_size // packs))


def packed(assignments: Assignments, examples: NDArray[np.int64], batch_size: int, size: int) -> Assignments:
    """Put clients of equal masks, epochs and numbers of steps into packs, in the order of their ids.

    Args:
        assignments: Those of a cohort.
        examples: Training rows of each client, `(clients,)`.
        batch_size: Rows of a step.
        size: Largest number of clients in a pack.
    """
    if size == 1 or not len(assignments):
        return assignments
    kinds = np.stack([assignments.masks.mask_of, assignments.epochs, num_batches(examples, batch_size)])
    hybrid = np.array([bool(mask.elements) for mask in assignments.masks.distinct])[assignments.masks.mask_of]
    _, kind_of = np.unique(kinds, axis=1, return_inverse=True)
    packs = np.full(len(assignments), Assignments.ALONE)
    used = 0
    for kind in np.unique(kind_of[~hybrid]):
        members = np.flatnonzero((kind_of == kind) & ~hybrid)
        members = members[np.argsort(assignments.clients[members])]
        if len(members) > 1:
            number = -(-len(members) // size)
            packs[members] = used + np.arange(len(members)) * number // len(members)
            used += number
    return replace(assignments, packs=packs)


def split_packs(packs: NDArray[np.int64]) -> tuple[NDArray[np.int64], Sequence[NDArray[np.int64]]]:
    """Return the indices of clients that are trained by themselves, and those of each pack's members."""
    together = np.unique(packs[packs != Assignments.ALONE])
    return np.flatnonzero(packs == Assignments.ALONE), [np.flatnonzero(packs == pack) for pack in together]
