"""PyTorch's attention with some of its heads: what a cut `nn.MultiheadAttention` becomes."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class NarrowAttention(nn.MultiheadAttention):
    """Attention whose heads together may be narrower than its inputs; keys, inputs and outputs are its base class's.

    Masks of single heads, `(batch * heads, length, length)`, are for the heads that are left. Nested tensors are not
    read.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what the base class does: the outputs, and the weights of the heads that are left."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True needs attn_mask; allowed: the causal mask")
        is_batched = query.dim() == 3
        queries, keys, values = (self._batch_first(each) for each in (query, key, value))
        q, k, v = (self._heads(each) for each in self._projected(queries, keys, values))
        mask = self._mask(key_padding_mask, attn_mask, q, k.shape[2])
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(2, 3)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=3)
            weights = functional.dropout(weights, dropout) if dropout else weights
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            found = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        outputs = functional.linear(found.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not is_batched:
            return outputs[0], None if weights is None else weights[0]
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _batch_first(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dim() == 2:
            return inputs[None]
        return inputs if self.batch_first else inputs.transpose(0, 1)

    def _projected(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return queries, keys and values of all heads, `(batch, length, heads * head_dim)`."""
        weights = [getattr(self, name) for name in PROJECTIONS]
        weights = list(self.in_proj_weight.chunk(3)) if self.in_proj_weight is not None else weights
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        found = [functional.linear(*each) for each in zip(inputs, weights, biases, strict=True)]
        for index, bias in ((1, self.bias_k), (2, self.bias_v)):
            if bias is not None:
                found[index] = torch.cat([found[index], bias.expand(len(found[index]), 1, -1)], dim=1)
            if self.add_zero_attn:
                found[index] = functional.pad(found[index], (0, 0, 0, 1))
        return found

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.view(*projected.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _mask(
        self, padding: torch.Tensor | None, attention: torch.Tensor | None, q: torch.Tensor, num_keys: int
    ) -> torch.Tensor | None:
        """Return what is added to the scores, broadcast to `(batch, heads, length, keys)`."""
        masks = []
        if padding is not None:
            masks.append(_additive(padding, q.dtype).view(len(q), 1, 1, -1))
        if attention is not None:
            attention = _additive(attention, q.dtype)
            masks.append(attention.view(*q.shape[:3], -1) if attention.dim() == 3 else attention)
        masks = [functional.pad(mask, (0, num_keys - mask.shape[-1])) for mask in masks]
        return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def is_attention(module: nn.Module) -> bool:
    """Whether a module is PyTorch's attention, whole or cut; not one of a user's subclasses."""
    return type(module) in (nn.MultiheadAttention, NarrowAttention)


def num_channels(attention: Any) -> int:
    """Return the number of channels of all heads together."""
    fused = attention.in_proj_weight
    return len(attention.q_proj_weight) if fused is None else len(fused) // 3


def refit(attention: Any) -> None:
    """Set the type and attributes of an attention to the shapes of its tensors, in place."""
    if is_cut(attention):
        attention.__class__ = NarrowAttention
        attention._qkv_same_embed_dim = False  # keeps the kernels of whole layers away
    reads = _readers(attention)
    attention.num_heads = num_channels(attention) // attention.head_dim
    attention.embed_dim, attention.kdim, attention.vdim = (
        len(attention.out_proj.weight),
        reads[1].shape[1],
        reads[2].shape[1],
    )


def is_cut(attention: Any) -> bool:
    """Whether the tensors of an attention are not those of its attributes, or were not once."""
    sizes = attention.num_heads * attention.head_dim, attention.embed_dim, attention.embed_dim
    found = num_channels(attention), len(attention.out_proj.weight), _readers(attention)[0].shape[1]
    return type(attention) is NarrowAttention or found != sizes


def _readers(attention: Any) -> list[torch.Tensor]:
    fused = attention.in_proj_weight
    return [fused] * 3 if fused is not None else [getattr(attention, name) for name in PROJECTIONS]


def refit_encoder(encoder: Any) -> None:
    """Let PyTorch's encoder make no nested tensors where it has a cut attention, which does not read them."""
    if any(
        is_cut(layer.self_attn) for layer in encoder.layers if is_attention(getattr(layer, "self_attn", nn.Module()))
    ):
        encoder.use_nested_tensor = False
