"""A causal transformer for token ids."""

import torch
from torch import nn
from torch.nn import functional

from raysim.models.recurrent import has_outputs_at_each_position


class CausalBlock(nn.Module):
    """Causal self-attention and a feed-forward network, each behind a LayerNorm and beside a shortcut.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self._head_width = width // heads
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.reduce = nn.Linear(hidden, width)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Map `(rows, time, width)` to the same shape."""
        stream = stream + self._attention(self.norm1(stream))
        return stream + torch.as_tensor(self.reduce(functional.gelu(self.expand(self.norm2(stream)))))

    def _attention(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, time, _ = inputs.shape
        query, key, value = (
            layer(inputs).view(rows, time, -1, self._head_width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return torch.as_tensor(self.mix(found.transpose(1, 2).reshape(rows, time, -1)))


class Transformer(nn.Module):
    """Embeddings of tokens and positions, causal blocks, and a linear layer on each position or on the last."""

    def __init__(
        self,
        vocabulary: int,
        time: int,
        width: int,
        blocks: list[CausalBlock],
        num_outputs: int,
        each_position: bool = True,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(time, width) * 0.02)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.Linear(width, num_outputs)
        self._each_position = each_position

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map token ids `(rows, time)` to `(rows, time, outputs)`, or `(rows, outputs)` of the last position."""
        stream = self.norm(self.blocks(self.tokens(tokens) + self.positions[: tokens.shape[1]]))
        outputs: torch.Tensor = self.outputs(stream if self._each_position else stream[:, -1])
        return outputs


def transformer(
    input_shape: tuple[int, ...],
    num_classes: int,
    vocabulary: int | None,
    task: str,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    hidden: int = 256,
) -> nn.Module:
    """Return a causal decoder of the form of GPT-2."""
    if vocabulary is None:
        raise ValueError("it reads token ids, and the inputs are none")
    if width % heads:
        raise ValueError(f"width={width} is no multiple of heads={heads}")
    blocks = [CausalBlock(width, heads, hidden) for _ in range(layers)]
    each_position = has_outputs_at_each_position(task)
    return Transformer(vocabulary, input_shape[0], width, blocks, num_classes, each_position)
