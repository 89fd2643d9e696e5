"""Adapters of low rank beside the layers of a model whose own weights are frozen (peft's LoRA)."""

import fnmatch
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from raysim.core import seeding
from raysim.core.errors import SettingError, nearest_first, reason_of
from raysim.core.tensors import frozen_keys
from raysim.models.trained_part import train_only

DOWN, UP = "lora_A", "lora_B"
"""Names of the two factors in peft's layers: `A` maps to the ranks, `B` back."""
EMBEDDED_DOWN, EMBEDDED_UP = "lora_embedding_A", "lora_embedding_B"
"""Their names in embeddings, where both are bare parameters; there A is zero at first, and B is drawn."""
BASE = "base_layer"
"""Name of the layer itself beside its adapter."""
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


@dataclass(frozen=True, slots=True)
class Adapter:
    """Adapters of a model; the fields are those of the `model.adapter` settings.

    Attributes:
        kind: `lora`: W + (alpha / rank) B A, A of `(rank, inputs)` and B of `(outputs, rank)`.
        rank: Ranks of each adapter in the full model.
        alpha: Factor of the product, divided by `rank` whatever the ranks of a submodel.
        dropout: Probability with which inputs of an adapter are dropped in training.
        targets: Names of the layers, with wildcards.
        train_also: Names of layers or parameters that are trained beside the adapters, with wildcards.

    Source: Hu et al., arXiv 2106.09685, section 4.1.
    """

    kind: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Sequence[str] = ("*",)
    train_also: Sequence[str] = ()


def with_adapters(model: nn.Module, adapter: Adapter, seed: int) -> nn.Module:
    """Add adapters to the layers of a model, in place, and freeze all else.

    One factor is drawn from the seed, the other is zero: the model computes what it computed before.

    Raises:
        SettingError: If peft is missing, or a pattern matches no layer that can have an adapter.
    """
    peft = _library()
    targets = _targets(model, adapter.targets)
    # peft takes a name for the end of longer ones, so that these are given as one pattern
    pattern = "|".join(name.replace(".", r"\.") for name in targets)
    config = peft.LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=pattern
    )
    with seeding.torch_seeded(seed, "adapter"), warnings.catch_warnings():
        # layers of both orientations may be targets, and nothing is merged
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            raise SettingError(f"model.adapter is not allowed for this model: {reason_of(error)}") from None
    model.requires_grad_(False)
    _leave_fast_paths(model)
    if adapter.train_also:
        train_only(model, adapter.train_also, "model.adapter.train_also")
    named = dict(model.named_parameters())
    for down, up in factors_in(named).items():
        named[down].requires_grad_(True)
        named[up].requires_grad_(True)
    return model


def factors_in(names: Iterable[str]) -> dict[str, str]:
    """Return, by the name of each adapter's factor A, the name of its factor B."""
    found = {}
    for name in names:
        parts = name.split(".")
        for down, up in ((DOWN, UP), (EMBEDDED_DOWN, EMBEDDED_UP)):
            if down in parts:
                found[name] = ".".join(up if part == down else part for part in parts)
    return found


def _leave_fast_paths(model: nn.Module) -> None:
    """Keep PyTorch's fused encoder layers, which read the frozen weights alone, from skipping their adapters."""
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer) and factors_in(layer.state_dict()):
            layer.activation_relu_or_gelu = 0
        elif isinstance(layer, nn.TransformerEncoder) and factors_in(layer.state_dict()):
            layer.use_nested_tensor = False


def uncut_tensors(model: nn.Module) -> dict[str, str]:
    """Return what is never cut beside adapters, by state-dict key, with the reason; nothing in a model without any.

    It is what is frozen, and layers with an adapter: the factors of an adapter lose ranks and nothing else.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if not factors_in(named):
        return {}
    frozen = dict.fromkeys(frozen_keys(model), "is frozen")
    return {key: "has an adapter" for key in named if BASE in key.split(".")} | frozen


def _targets(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    layers = [name for name, layer in model.named_modules() if _can_have_one(layer)]
    found: list[str] = []
    for pattern in patterns:
        matching = fnmatch.filter(layers, pattern)
        if not matching:
            near = ", ".join(nearest_first(pattern, layers)[:5]) or "none"
            raise SettingError(
                f"model.adapter.targets={pattern!r} matches no linear layer, convolution or embedding; "
                f"nearest: {near}"
            )
        found += [name for name in matching if name not in found]
    return found


def _can_have_one(layer: nn.Module) -> bool:
    """Whether a layer can have an adapter: not one whose weight attention reads itself, nor a grouped convolution."""
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear) or getattr(layer, "groups", 1) > 1:
        return False
    return isinstance(layer, KINDS) or _is_conv1d(layer)


def _is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer is the linear layer of GPT-2 in transformers."""
    return type(layer).__name__ == "Conv1D"


def _library() -> Any:
    try:
        import peft
    except ImportError:
        raise SettingError(
            "model.adapter needs the library peft; install it: pip install 'raysim[adapters]'"
        ) from None
    return peft
