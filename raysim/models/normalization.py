"""Replace the BatchNorm layers of a model by GroupNorm."""

from math import gcd

from torch import nn

GROUPS = 4
"""Groups of a new GroupNorm: few, so that each keeps channels in narrow submodels."""


def group_normalized(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm by a fresh GroupNorm, in place, and return the model (Wu and He, arXiv 1803.08494).

    The number of groups is the greatest divisor that `GROUPS` and the number of channels share. Where the parameters
    of a norm are frozen, those of the new one are, too.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            groups = gcd(GROUPS, child.num_features)
            norm = nn.GroupNorm(groups, child.num_features, child.eps, child.affine)
            for fresh, replaced in zip(norm.parameters(), child.parameters(), strict=True):
                fresh.requires_grad_(replaced.requires_grad)
            setattr(model, name, norm)
        else:
            group_normalized(child)
    return model
