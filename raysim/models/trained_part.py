"""Choose which parameters of a model are trained; the others are frozen."""

import fnmatch
from collections.abc import Sequence

from torch import nn

from raysim.core.errors import SettingError, nearest_first


def train_only(model: nn.Module, patterns: Sequence[str], setting: str) -> None:
    """Freeze all parameters of a model, in place, but those that patterns name.

    Args:
        model: The model.
        patterns: Names of parameters, or of layers whose parameters are all trained, with wildcards.
        setting: The setting that holds the patterns, for messages.

    Raises:
        SettingError: If a pattern matches nothing.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    layers = [name for name, _ in model.named_modules() if name]
    trained: set[str] = set()
    for pattern in patterns:
        found = set(fnmatch.filter(named, pattern))
        for layer in fnmatch.filter(layers, pattern):
            found |= {name for name in named if name.startswith(f"{layer}.")}
        if not found:
            near = ", ".join(nearest_first(pattern, [*layers, *named])[:5])
            raise SettingError(f"{setting}={pattern!r} matches no layer or parameter; nearest: {near}")
        trained |= found
    kept = {id(named[name]) for name in trained}  # a shared parameter has several names
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in kept)
