"""Heads of attention: PyTorch's own, and those of modules that reshape the outputs of linear layers."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from raysim.core.errors import UntraceableError
from raysim.pruning.attention import NarrowAttention
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.proof import randomise
from tests.oracles import held_entries, norms_over_kept_channels, random_mask

WORDS = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))


class EncoderNet(nn.Module):
    """Two layers of PyTorch's Transformer encoder over words, read out at each position."""

    def __init__(self, causal: bool = False, **options: Any) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 12), nn.Parameter(torch.zeros(5, 12))
        layer = nn.TransformerEncoderLayer(12, 4, 16, **{"batch_first": True, "dropout": 0.1, **options})
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.vocabulary = nn.Linear(12, 11)
        self.causal, self.batch_first = causal, options.get("batch_first", True)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        stream = self.embed(words) + self.place
        stream = stream if self.batch_first else stream.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=stream.dtype, device=stream.device)
        return self.vocabulary(self.encoder(stream, mask, is_causal=True) if self.causal else self.encoder(stream))


class DecoderNet(nn.Module):
    """A decoder that reads an encoder: self attention and cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.source = nn.Embedding(11, 12), nn.Embedding(11, 12)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 3, 16, 0.0, batch_first=True), 2)
        self.vocabulary = nn.Linear(12, 11)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=self.embed.weight.dtype)
        return self.vocabulary(self.decoder(self.embed(words), self.source(words.flip(1)), mask))


class CrossNet(nn.Module):
    """Queries of one width, keys and values of others, padded keys, and every option of PyTorch's attention."""

    def __init__(self, need_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.queries, self.keys, self.values = nn.Embedding(11, 12), nn.Embedding(11, 10), nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(12, 4, kdim=10, vdim=8, **options)
        self.read = nn.Linear(12, 3)
        self.need_weights = need_weights

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        batch_first = self.attention.batch_first
        padding = torch.arange(5).expand(len(words), 5) >= torch.tensor([5, 3, 4])[: len(words), None].to(
            words.device
        )
        words = words if batch_first else words.T
        query, key, value = self.queries(words), self.keys(words), self.values(words)
        found, _ = self.attention(query, key, value, padding.to(words.device), need_weights=self.need_weights)
        return self.read(found)


class UnbatchedNet(nn.Module):
    """Attends within one sequence at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(11, 12), nn.MultiheadAttention(12, 4)
        self.read = nn.Linear(12, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        streams = [self.embed(each) for each in words]
        return torch.stack([self.read(self.attention(each, each, each)[0]) for each in streams])


class Conv1D(nn.Module):
    """GPT-2's linear layer, as the transformers library has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = torch.addmm(self.bias, inputs.view(-1, inputs.size(-1)), self.weight)
        return outputs.view(*inputs.size()[:-1], self.nf)


class GPTAttention(nn.Module):
    """As in GPT-2 of the transformers library: fused projections, split by a stored size."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim, self.split_size = 12, 4, 3, 12
        self.c_attn = nn.Linear(12, 36) if linear else Conv1D(36, 12)
        self.c_proj = nn.Linear(12, 12) if linear else Conv1D(12, 12)
        self.register_buffer("causal", torch.ones(5, 5).tril().bool(), persistent=False)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        parts = self.c_attn(stream).split(self.split_size, dim=2)
        query, key, value = (each.view(*each.shape[:2], -1, self.head_dim).transpose(1, 2) for each in parts)
        scores = (query @ key.transpose(-1, -2) / math.sqrt(self.head_dim)).masked_fill(~self.causal, -1e9)
        found = (scores.softmax(-1) @ value).transpose(1, 2)
        return self.c_proj(found.reshape(*stream.shape[:2], -1))


class BertSelf(nn.Module):
    """As in BERT of the transformers library: three projections, and a stored size of all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 3, 12
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        shape = (*stream.shape[:2], self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            each(stream).view(shape).permute(0, 2, 1, 3) for each in (self.query, self.key, self.value)
        )
        scores = (query @ key.transpose(-1, -2) / math.sqrt(self.attention_head_size)).softmax(-1)
        found = (scores @ value).permute(0, 2, 1, 3).contiguous()
        return found.view(*stream.shape[:2], self.all_head_size)


class BertAttention(nn.Module):
    """BERT's attention and, in a module of its own, the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.self, self.output = BertSelf(), nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.1))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return self.output(self.self(stream))


class RMSNorm(nn.Module):
    """A norm by hand, as in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.weight * inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + self.eps)


class LlamaAttention(nn.Module):
    """As in Llama: rotated positions, and keys and values that several heads share."""

    def __init__(self, key_heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = 6, key_heads, 2
        self.q_proj = nn.Linear(12, 12, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(12, key_heads * 2, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(12, 12, bias=False)

    def rotated(self, heads: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(heads.shape[2], device=heads.device).to(heads.dtype)[:, None]
        first, second = heads.chunk(2, dim=-1)
        return heads * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        batch, length = stream.shape[:2]
        query = self.q_proj(stream).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        shared = (batch, length, self.num_key_value_heads, self.head_dim)
        key, value = (each(stream).view(shared).transpose(1, 2) for each in (self.k_proj, self.v_proj))
        repeats = self.num_heads // self.num_key_value_heads
        key, value = (
            each[:, :, None].expand(-1, -1, repeats, -1, -1).reshape(batch, self.num_heads, length, self.head_dim)
            for each in (self.rotated(key), value)
        )
        found = functional.scaled_dot_product_attention(self.rotated(query), key, value, is_causal=True)
        return self.o_proj(found.transpose(1, 2).reshape(batch, length, -1))


class GatedMLP(nn.Module):
    """Llama's MLP: a gate scales what is read back."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(12, 10, bias=False), nn.Linear(12, 10, bias=False)
        self.down_proj = nn.Linear(10, 12, bias=False)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(stream)) * self.up_proj(stream))


class LanguageModel(nn.Module):
    """Two blocks of attention and an MLP beside a residual stream of words."""

    def __init__(self, attention: Any, norm: Any = nn.LayerNorm, mlp: Any = None, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            hidden = mlp() if mlp else nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))
            parts = {"norm": norm(12), "attention": attention(), "second": norm(12), "mlp": hidden}
            self.blocks.append(nn.ModuleDict(parts))
        self.last = norm(12)
        self.vocabulary = nn.Linear(12, 11, bias=False)
        if tied:
            self.vocabulary.weight = self.embed.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        stream = self.embed(words)
        for block in self.blocks:
            stream = stream + block["attention"](block["norm"](stream))
            stream = stream + block["mlp"](block["second"](stream))
        return self.vocabulary(self.last(stream))


class TranslationNet(nn.Module):
    """PyTorch's Transformer, which checks the width of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.transformer = nn.Transformer(12, 4, 1, 2, 16, 0.0, batch_first=True)
        self.vocabulary = nn.Linear(12, 11)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.vocabulary(self.transformer(self.embed(words), self.embed(words.flip(1))))


class HalvesNet(nn.Module):
    """An MLP whose second half of channels gates the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wide, self.read = nn.Embedding(11, 12), nn.Linear(12, 16), nn.Linear(8, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.read(functional.glu(self.wide(self.embed(words))))


NETWORKS = {
    "encoder": EncoderNet,
    "norm first, time first, gelu": lambda: EncoderNet(norm_first=True, batch_first=False, activation="gelu"),
    "causal, no bias": lambda: EncoderNet(causal=True, bias=False),
    "decoder": DecoderNet,
    "cross": CrossNet,
    "cross with all options": lambda: CrossNet(True, batch_first=True, add_bias_kv=True, add_zero_attn=True),
    "unbatched": UnbatchedNet,
    "gpt": lambda: LanguageModel(lambda: GPTAttention(True), tied=True),
    "gpt with Conv1D": lambda: LanguageModel(lambda: GPTAttention(False)),
    "bert": lambda: LanguageModel(BertAttention),
    "llama": lambda: LanguageModel(LlamaAttention, nn.RMSNorm, GatedMLP),
    "norms by hand": lambda: LanguageModel(LlamaAttention, RMSNorm, GatedMLP),
    "translation": TranslationNet,
    "gated by halves": HalvesNet,
}
"""Models of which everything can be cut but inputs and outputs."""

Network = tuple[nn.Module, ChannelPlan]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    model = NETWORKS[request.param]()
    return model, ChannelPlan.trace(model, WORDS)


def law_2(model: nn.Module, plan: ChannelPlan, mask: Mask) -> None:
    model = copy.deepcopy(model).double().eval()
    randomise(model, torch.Generator().manual_seed(1))
    held = held_entries(plan, mask, model.state_dict())
    with torch.no_grad():
        found = plan.extract(model, mask)(WORDS)
        norms_over_kept_channels(model, held)
        for key, tensor in model.state_dict().items():
            tensor.mul_(held[key])
        expected = model(WORDS)
    assert float(expected.std()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_law_2_holds_for_random_heads(network: Network, seed: int) -> None:
    model, plan = network
    assert not plan.unprunable
    law_2(model, plan, random_mask(plan, seed))


def test_law_1_and_training_keep_the_keys(network: Network) -> None:
    model, plan = network
    mask = random_mask(plan, 3)
    small = plan.extract(model, mask).train()
    assert list(small.state_dict()) == list(model.state_dict())
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    optimizer = torch.optim.SGD(small.parameters(), 0.5)
    small(WORDS).square().sum().backward()
    optimizer.step()
    changed = [not torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items()]
    assert sum(changed) >= len(changed) - 2
    params, covered = plan.reconstruct(small.state_dict(), model.state_dict(), mask)
    held = held_entries(plan, mask, model.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(covered[key].expand(tensor.shape), held[key])
        assert torch.equal(params[key][held[key]], small.state_dict()[key].flatten())
        assert torch.equal(params[key][~held[key]], tensor[~held[key]])


def test_plans_and_submodels_survive_files(network: Network, tmp_path) -> None:
    model, plan = network
    plan.save(tmp_path / "plan.json")
    mask = random_mask(plan, 4)
    small = ChannelPlan.load(tmp_path / "plan.json").extract(model, mask).eval()
    again = copy.deepcopy(small)
    if "lambda" not in repr(type(model)):
        again = pickle.loads(pickle.dumps(small))
    assert torch.equal(again(WORDS), small(WORDS))


def only(plan: ChannelPlan, names: list[str], seed: int) -> Mask:
    """Cut some groups at random, and leave the others whole."""
    mask = random_mask(plan, seed)
    for name, units in plan.units.items():
        if name not in names:
            mask.kept[units] = True
    return mask


@pytest.mark.parametrize(
    ("names", "is_narrow"), [(["encoder.layers.0.linear1"], False), (["encoder.layers.1.self_attn"], True)]
)
def test_evaluation_kernels_compute_the_same(names: list[str], is_narrow: bool) -> None:
    """PyTorch evaluates whole encoder layers in one kernel; it takes narrow MLPs, but not narrow heads."""
    model = EncoderNet().double().eval()
    plan = ChannelPlan.trace(model, WORDS)
    randomise(model, torch.Generator().manual_seed(1))
    mask = only(plan, names, seed=1)
    small = plan.extract(model, mask)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.mul_(held_entries(plan, mask, model.state_dict())[key])
        torch.testing.assert_close(small(WORDS), model(WORDS), rtol=1e-8, atol=1e-8)
    assert isinstance(small.encoder.layers[1].self_attn, NarrowAttention) == is_narrow


def test_an_encoder_with_cut_heads_makes_no_nested_tensors() -> None:
    class Padded(EncoderNet):
        def forward(self, words: torch.Tensor) -> torch.Tensor:
            padding = torch.arange(5).expand(len(words), 5) >= torch.tensor([5, 3, 4])[: len(words), None]
            found = self.encoder(self.embed(words), src_key_padding_mask=padding)
            return self.vocabulary(found[:, 0])

    model = Padded().eval()
    model.encoder.enable_nested_tensor = model.encoder.use_nested_tensor = True
    plan = ChannelPlan.trace(model, WORDS)
    assert "encoder.layers.0.self_attn" in plan.units
    with torch.no_grad():
        assert plan.extract(model, random_mask(plan, 0))(WORDS).shape == (3, 11)


def test_a_cut_attention_has_the_attributes_of_its_tensors() -> None:
    model = EncoderNet()
    plan = ChannelPlan.trace(model, WORDS)
    mask = plan.keep_top({name: np.arange(size) for name, size in sizes(plan).items()}, 0.5)
    cut = plan.extract(model, mask).encoder.layers[0].self_attn
    assert (cut.num_heads, cut.head_dim, cut.embed_dim, cut.kdim, cut.vdim) == (2, 3, 6, 6, 6)
    assert cut.in_proj_weight.shape == (18, 6)
    assert cut.out_proj.weight.shape == (6, 6)
    assert type(plan.extract(model, Mask.whole(plan)).encoder.layers[0].self_attn) is nn.MultiheadAttention


def sizes(plan: ChannelPlan) -> dict[str, int]:
    return {group.name: group.size for group in plan.groups}


def test_a_head_has_its_queries_keys_values_and_columns() -> None:
    plan = ChannelPlan.trace(LanguageModel(lambda: GPTAttention(False)), WORDS)
    (group,) = (group for group in plan.groups if group.name == "blocks.1.attention.c_attn")
    slots = {(slot.key.removeprefix("blocks.1.attention."), slot.dim): slot for slot in group.slots}
    assert slots["c_attn.weight", 1].indices[1].tolist() == [3, 4, 5, 15, 16, 17, 27, 28, 29]
    assert slots["c_attn.bias", 0].indices[1].tolist() == [3, 4, 5, 15, 16, 17, 27, 28, 29]
    assert slots["c_proj.weight", 0].indices[1].tolist() == [3, 4, 5]
    assert slots["c_proj.weight", 0].role == "consumer"


def test_heads_that_share_keys_are_one_unit_and_numbers_shrink_with_them() -> None:
    model = LanguageModel(LlamaAttention, nn.RMSNorm)
    plan = ChannelPlan.trace(model, WORDS)
    assert sizes(plan)["blocks.0.attention.q_proj"] == 3
    small = plan.extract(model, plan.keep_top({name: np.arange(size) for name, size in sizes(plan).items()}, 0.6))
    attention = small.blocks[0]["attention"]
    assert (attention.num_heads, attention.num_key_value_heads, attention.head_dim) == (4, 2, 2)
    assert (attention.q_proj.out_features, attention.v_proj.out_features, attention.o_proj.in_features) == (8, 4, 8)
    assert (model.blocks[0]["attention"].num_heads, model.blocks[0]["attention"].num_key_value_heads) == (6, 3)


def test_heads_that_all_share_one_key_are_cut_without_it() -> None:
    model = LanguageModel(lambda: LlamaAttention(1), nn.RMSNorm)
    plan = ChannelPlan.trace(model, WORDS, keep_whole=["embed"])
    assert sizes(plan)["blocks.0.attention.q_proj"] == 6
    assert plan.extract(model, plan.random_mask(0.5)).blocks[0]["attention"].k_proj.weight.shape == (2, 12)
    law_2(model, plan, random_mask(plan, 1))


class PlainAttention(nn.Module):
    """Takes the size of a head from the width of its inputs: its heads cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head = 4
        self.c_attn, self.c_proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        batch, length, width = stream.shape
        shape = (batch, length, self.n_head, width // self.n_head)
        query, key, value = (each.view(shape).transpose(1, 2) for each in self.c_attn(stream).split(width, dim=2))
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(found.transpose(1, 2).contiguous().view(batch, length, width))


def test_heads_that_a_forward_counts_on_are_left_whole_with_the_reason() -> None:
    plan = ChannelPlan.trace(LanguageModel(PlainAttention), WORDS)
    assert sorted(sizes(plan)) == ["blocks.0.mlp.0", "blocks.1.mlp.0"]
    assert "blocks.0.attention.c_attn: its heads cannot be cut: " in plan.summary()


def test_what_only_looks_like_a_norm_is_no_norm() -> None:
    class Softmax(RMSNorm):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return (self.weight * inputs).softmax(-1)

    plan = ChannelPlan.trace(LanguageModel(BertAttention, Softmax), WORDS)
    assert "cutting it changes what the rest computes" in plan.unprunable["embed"]
    assert sizes(plan) == {
        "blocks.0.attention.self.query": 4,
        "blocks.0.mlp.0": 10,
        "blocks.1.attention.self.query": 4,
        "blocks.1.mlp.0": 10,
    }


def test_a_vision_transformer_is_cut_with_the_width_it_reshapes_by() -> None:
    model = torchvision.models.VisionTransformer(32, 16, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24)
    plan = ChannelPlan.trace(model, torch.randn(2, 3, 32, 32))
    assert sorted(sizes(plan).values()) == [4, 4, 16, 24, 24]
    assert plan.unprunable == {}
    small = plan.extract(model, plan.random_mask(0.5))
    assert (small.hidden_dim, small.image_size, small.encoder.layers[0].self_attention.num_heads) == (8, 32, 2)


def test_a_subclass_of_attention_is_left_whole() -> None:
    class Own(nn.MultiheadAttention):
        """A user's subclass, which may compute anything."""

    model = EncoderNet()
    model.encoder.layers[0].self_attn.__class__ = Own
    plan = ChannelPlan.trace(model, WORDS)
    assert plan.unprunable["encoder.layers.0.self_attn"] == "layers of type Own are not cut"
    assert sorted(sizes(plan)) == [
        "encoder.layers.0.linear1",
        "encoder.layers.1.linear1",
        "encoder.layers.1.self_attn",
    ]


def test_keep_whole_names_heads() -> None:
    model = LanguageModel(BertAttention)
    plan = ChannelPlan.trace(model, WORDS, keep_whole=["*.key", "embed"])
    assert plan.unprunable["blocks.0.attention.self.query"] == "left whole, since keep_whole names '*.key'"
    assert sorted(sizes(plan)) == ["blocks.0.mlp.0", "blocks.1.mlp.0"]
    heads = ChannelPlan.trace(EncoderNet(), WORDS, keep_whole=["*self_attn"])
    assert not any(name.endswith("self_attn") for name in heads.units)


def test_one_head_of_an_attention_stays() -> None:
    plan = ChannelPlan.trace(EncoderNet(), WORDS)
    mask = plan.random_mask(0.01)
    assert int(mask.kept[plan.units["encoder.layers.0.self_attn"]].sum()) == 1
    law_2(EncoderNet(), plan, mask)


def attention_flops(embed: int, inner: int, length: int) -> int:
    """Forward: queries, keys, values and output of every position, scores and weighted sums of every pair."""
    return 2 * length * 4 * embed * inner + 2 * 2 * length * length * inner


@pytest.mark.parametrize("kept", [4, 1])
def test_flops_equal_a_hand_count_and_fall_with_the_heads(kept: int) -> None:
    model = EncoderNet()
    plan = ChannelPlan.trace(model, WORDS, keep_whole=["embed", "*.linear1"])
    table = CostTable(model, plan, (5,), WORDS[:2])
    mask = plan.keep_top({name: np.arange(size) for name, size in sizes(plan).items()}, kept / 4)
    rest = 2 * (2 * 5 * 2 * 12 * 16) + 2 * 5 * 12 * 11
    forward = 2 * attention_flops(12, 3 * kept, 5) + rest
    assert table.forward_flops_of(mask) == forward
    assert table.of(mask).train_flops == 3 * forward
    scores = 4 * kept * 5 * 5  # bytes of one layer's softmax, which the backward pass reads
    assert table.of(mask).activation_bytes >= 2 * scores
    if kept < 4:
        assert table.of(mask).activation_bytes < table.dense.activation_bytes


def test_a_forward_that_allows_no_gradients_cannot_be_traced() -> None:
    class Detour(LanguageModel):
        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return super().forward(words) + float(self.embed(words).numpy().sum())

    with pytest.raises(UntraceableError, match="cannot be traced"):
        ChannelPlan.trace(Detour(BertAttention), WORDS)
