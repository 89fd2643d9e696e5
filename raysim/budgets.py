"""How much of the model each device tier can afford."""

from collections.abc import Callable

from raysim.types import Budget, Tier

HALVING_LEVELS = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Widths of HeteroFL's submodels (Diao et al., arXiv 2010.01264)."""

BudgetRule = Callable[[Tier], Budget]


def whole_model(tier: Tier) -> Budget:
    """Give every client the full model, whatever its device."""
    return Budget(1.0, "nothing")


def of_tier(tier: Tier) -> Budget:
    """Give a client its tier's share of the channels."""
    return Budget(tier.keep_ratio, "tier" if tier.keep_ratio < 1 else "nothing")


def halving_level(tier: Tier) -> Budget:
    """Give a client the widest of HeteroFL's levels that its tier affords, the narrowest where none fits."""
    fitting = [level for level in HALVING_LEVELS if level <= tier.keep_ratio]
    level = fitting[0] if fitting else HALVING_LEVELS[-1]
    return Budget(level, "tier" if level < 1 else "nothing")
