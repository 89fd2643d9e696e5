"""Turn a cohort's summed updates into new parameters: normalise by coverage, fill what nobody trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from raysim.core.tensors import Params
from raysim.pruning.coverage import Coverage


@dataclass(frozen=True, slots=True, eq=False)
class CohortUpdate:
    """A cohort's update of one tensor.

    Attributes:
        current: Global values w before the round.
        summed: Sum of n_k times the update of client k where it holds the entry, float64.
        covered: Examples behind each entry: the sum of n_k over its holders.
        total: Examples of the whole cohort.
    """

    current: torch.Tensor
    summed: torch.Tensor
    covered: torch.Tensor
    total: int


FillRule = Callable[[CohortUpdate, float], torch.Tensor]


def fill_global(update: CohortUpdate, gamma: float) -> torch.Tensor:
    """Rule A, the paper's: w + sum p_k m_k D_k (CA-HFP, arXiv 2603.12591, eq 4)."""
    return update.current.double() + update.summed / update.total


def fill_holders(update: CohortUpdate, gamma: float) -> torch.Tensor:
    """Rule B: w + sum p_k m_k D_k / c, the mean over those who hold the entry (HeteroFL, arXiv 2010.01264)."""
    return update.current.double() + divide(update.summed, update.covered)


def fill_zero(update: CohortUpdate, gamma: float) -> torch.Tensor:
    """Rule C, an ablation: sum p_k m_k w_k, as if a pruned entry were zero."""
    share = update.covered / update.total
    return share * update.current.double() + update.summed / update.total


def fill_damped(update: CohortUpdate, gamma: float) -> torch.Tensor:
    """Rule D: w + sum p_k m_k D_k / c^gamma; gamma 0 is rule A, gamma 1 rule B."""
    share = update.covered / update.total
    return update.current.double() + divide(update.summed, update.total * share**gamma)


def divide(summed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Divide where the weight is above 0; 0 elsewhere."""
    return torch.where(weight > 0, summed / weight.clamp_min(1e-300), 0.0)


def apply_updates(
    params: Params,
    buffers: frozenset[str],
    summed: Callable[[str], torch.Tensor],
    coverage: Coverage,
    total: int,
    fill: FillRule,
    gamma: float,
    average_buffers: bool,
    largest: Params | None = None,
    frozen: frozenset[str] = frozenset(),
) -> Params:
    """Return the new global parameters and buffers.

    Args:
        params: Global parameters and buffers before the round.
        buffers: Keys of `params` that are buffers: averaged over their holders, never filled.
        summed: From a key to the sum of n_k times each client's update, float64.
        coverage: Examples behind each entry.
        total: Examples of the whole cohort.
        fill: How parameters are normalised.
        gamma: Exponent of `fill_damped`.
        average_buffers: Whether running statistics are averaged (else they keep their values).
        largest: The largest value among the holders of each entry, of tensors of whole numbers and booleans: they
            take it, since a mean of counts counts nothing. Those without an entry keep their values.
        frozen: Keys of parameters that nobody trains or sends: they keep their values.
    """
    updated: Params = {}
    for key, current in params.items():
        if key in frozen or (key in buffers and not average_buffers):
            updated[key] = current
            continue
        if not current.is_floating_point():
            found = (largest or {}).get(key, current)
            updated[key] = torch.where(coverage[key] > 0, found, current)
            continue
        update = CohortUpdate(current, summed(key), coverage[key], total)
        rule = fill_holders if key in buffers else fill
        updated[key] = rule(update, gamma).to(current.dtype)
    return updated


FILLS: dict[str, FillRule] = {
    "global": fill_global,
    "holders": fill_holders,
    "zero": fill_zero,
    "damped": fill_damped,
}
