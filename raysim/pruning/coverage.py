"""Count the examples of the clients that train each entry of the model, per pair of channel groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.tensors import Columns, Params
from raysim.pruning.groups import ChannelGroups
from raysim.pruning.masks import CohortMasks, Mask


@dataclass(frozen=True, slots=True)
class CoverageSummary:
    """How much of the model a cohort trained, as shares of the cohort's examples per parameter entry."""

    mean: float
    min: float
    untrained_share: float
    untrained_channel_share: float

    @staticmethod
    def none() -> "CoverageSummary":
        """Return the summary of a cohort that trained nothing."""
        return CoverageSummary(mean=0.0, min=0.0, untrained_share=1.0, untrained_channel_share=1.0)


Coverage = dict[str, torch.Tensor]
"""Examples of the clients that hold each entry, by state-dict key: float64, broadcastable to the key's tensor."""
AT_ONCE = 32
"""Number of masks whose channels are summed together: few enough for the processor's cache."""


def count_coverage(
    plan: ChannelGroups,
    masks: Sequence[Mask],
    weights: NDArray[np.int64],
    classes: NDArray[np.bool_] | None = None,
) -> Coverage:
    """Sum the example counts of the clients that hold each entry.

    Args:
        plan: The model's channel groups.
        masks: Mask of each client; clients with equal masks may share the object.
        weights: Training examples of each client, `(clients,)`.
        classes: Which classifier rows each client may change, `(clients, num_classes)`. None: all rows.

    Returns:
        For every state-dict key a tensor with the key's number of dimensions, of size 1 along dimensions that no mask
        cuts. Counts are exact: integers in float64.
    """
    rows, counts, owned = _merge_equal(CohortMasks.of(masks), weights, classes)
    coverage: Coverage = {}
    for key, shape in plan.shapes.items():
        factors = {dim: _kept_along(shape[dim], slots, rows) for dim, slots in plan.axes.get(key, {}).items()}
        if owned is not None and plan.outputs is not None:
            factors |= {slot.dim: owned for slot in plan.outputs.slots if slot.key == key}
        coverage[key] = _outer(factors, counts, len(shape))
    return coverage


def _merge_equal(
    masks: CohortMasks, weights: NDArray[np.int64], classes: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.bool_] | None]:
    distinct = np.stack([mask.kept for mask in masks.distinct])
    if classes is None:
        counts = np.bincount(masks.mask_of, weights=weights, minlength=len(distinct)).astype(np.float64)
        return distinct, counts, None
    together = np.concatenate([masks.mask_of[:, None], classes], axis=1)
    _, first, group = np.unique(together, axis=0, return_index=True, return_inverse=True)
    counts = np.bincount(group.ravel(), weights=weights, minlength=len(first)).astype(np.float64)
    return distinct[masks.mask_of[first]], counts, classes[first]


def _kept_along(
    size: int, slots: list[tuple[slice, NDArray[np.int64]]], rows: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    kept = np.ones((len(rows), size), dtype=np.bool_)
    for units, indices in slots:
        kept[:, indices] &= rows[:, units, None]
    return kept


def _outer(factors: dict[int, NDArray[np.bool_]], counts: NDArray[np.float64], num_dims: int) -> torch.Tensor:
    shape = [1] * num_dims
    if not factors:
        return torch.full(shape, counts.sum(), dtype=torch.float64)
    dims = sorted(factors)
    total = factors[dims[0]].astype(np.float64) * counts[:, None]
    total = total.sum(axis=0) if len(dims) == 1 else total.T @ factors[dims[1]].astype(np.float64)
    for dim in dims:
        shape[dim] = factors[dim].shape[1]
    return torch.from_numpy(total.reshape(shape))


def channel_columns(
    plan: ChannelGroups, round: int, masks: Sequence[Mask] = (), examples: NDArray[np.int64] | None = None
) -> Columns:
    """Return a table of the clients and examples that trained each unit in a round, in the order of the plan.

    With masks of single entries, a unit is trained if at least one of its own weights is sent back.

    Args:
        plan: The model's channel groups.
        round: Counted from 1.
        masks: Mask of each client whose update counts.
        examples: Training examples of each of these clients, `(clients,)`. None: no update counts.
    """
    counts = np.zeros((2, plan.num_units))  # exact: integers
    if examples is not None and len(examples):
        together = CohortMasks.of(masks)
        size = len(together.distinct)
        held = [np.bincount(together.mask_of, weights, size) for weights in (None, examples)]
        weights = np.stack(held).astype(np.float64)
        for start in range(0, size, AT_ONCE):
            several = together.distinct[start : start + AT_ONCE]
            trained = np.stack([_trained_units(plan, mask) for mask in several]).astype(np.float64)
            counts += weights[:, start : start + AT_ONCE] @ trained
    return {
        "round": np.full(plan.num_units, round, dtype=np.int32),
        "unit": np.arange(plan.num_units, dtype=np.int32),
        "clients": counts[0].astype(np.int32),
        "examples": counts[1].astype(np.int64),
    }


def _trained_units(plan: ChannelGroups, mask: Mask) -> NDArray[np.bool_]:
    """Return which units a client trains, `(num_units,)`."""
    if not mask.elements:
        return mask.kept
    is_masked, has_any = np.zeros_like(mask.kept), np.zeros_like(mask.kept)
    for group, slot in plan.slots():
        if slot.role == "weight" and slot.key in mask.elements:
            shape, units = plan.shapes[slot.key], plan.units[group.name]
            kept = np.unpackbits(mask.elements[slot.key], count=prod(shape)).reshape(shape)
            along = np.asarray(np.moveaxis(kept, slot.dim, 0).reshape(shape[slot.dim], -1).any(axis=1))
            is_masked[units] = True
            has_any[units] |= along[slot.indices].any(axis=1)
    return np.asarray(mask.kept & (has_any | ~is_masked))


def summarise(coverage: Coverage, params: Params, trained: NDArray[np.bool_], total: int) -> CoverageSummary:
    """Return mean and smallest coverage of all floating-point entries, as shares of the cohort's examples.

    Args:
        coverage: Counts from `count_coverage`.
        params: The full model.
        trained: Which units at least one client trained, `(num_units,)`; see `channel_columns`.
        total: Training examples of the whole cohort.
    """
    floating = [key for key, tensor in params.items() if tensor.is_floating_point()]
    entries = sum(params[key].numel() for key in floating)
    repeats = {key: params[key].numel() / coverage[key].numel() for key in floating}
    mean = sum(float(coverage[key].sum()) * repeats[key] for key in floating) / (entries * total)
    untrained = sum(int((coverage[key] == 0).sum()) * repeats[key] for key in floating) / entries
    return CoverageSummary(
        mean=mean,
        min=min(float(coverage[key].min()) for key in floating) / total,
        untrained_share=untrained,
        untrained_channel_share=1 - float(trained.mean()) if len(trained) else 0.0,
    )
