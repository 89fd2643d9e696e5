"""Adapters and frozen parameters: what is trained, cut, sent and counted."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import pytorch_utils

from raysim.client import update
from raysim.core.errors import SettingError
from raysim.methods.resolve import rank
from raysim.models.adapters import Adapter, uncut_tensors, with_adapters
from raysim.models.trained_part import train_only
from raysim.models.transformer import CausalBlock, Transformer
from raysim.pruning import proof
from raysim.pruning.groups import ChannelGroups
from raysim.pruning.masks import Mask, keep_top
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.proof import randomise
from raysim.simulation.build import build_scenario
from tests.conftest import tiny_settings
from tests.oracles import held_entries, random_mask
from tests.planned import plan_round, state_after, view_for

ADAPTED = "model.adapter={rank: 4, targets: ['2', '6'], train_also: ['8']}"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))


def test_adapters_change_nothing_at_first_and_alone_are_trained() -> None:
    plain, adapted = network(), with_adapters(network(), Adapter(rank=4, targets=("0", "2"), train_also=("4",)), 0)
    inputs = torch.randn(5, 6)
    torch.testing.assert_close(adapted(inputs), plain(inputs))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    factors = {f"{layer}.lora_{factor}.default.weight" for layer in (0, 2) for factor in "AB"}
    assert trained == factors | {"4.weight", "4.bias"}


def test_adapters_are_drawn_from_the_seed() -> None:
    one, same, other = (with_adapters(network(), Adapter(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["0.lora_A.default.weight"], other["0.lora_A.default.weight"])


class Reader(nn.Module):
    """Tokens, a residual stream, GPT-2's linear layer, PyTorch's attention and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.expand, self.reduce = pytorch_utils.Conv1D(16, 8), pytorch_utils.Conv1D(8, 16)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden, self.outputs = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        stream = self.tokens(tokens)
        stream = stream + self.reduce(torch.tanh(self.expand(self.norm(stream))))
        stream = stream + self.attention(stream, stream, stream, need_weights=False)[0]
        return torch.as_tensor(self.outputs(torch.relu(self.hidden(stream.mean(1)))))


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    images = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten()]
    series = [nn.Linear(144, 5), nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 3)]
    return nn.Sequential(*images, *series)


TOKENS = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(5))
MODELS = {
    "linear": (network, torch.randn(4, 6), Adapter(rank=6, alpha=3.0, targets=("0", "2"), train_also=("4",))),
    "convolutions": (convolutions, torch.randn(4, 1, 8, 8), Adapter(rank=4, alpha=2.0, train_also=("1",))),
    "tokens": (Reader, TOKENS, Adapter(rank=4, alpha=2.0, train_also=("hidden", "outputs"), targets=("*s", "*e*"))),
}
RANKS = {
    "linear": {"0.lora_A.default": 6, "2.lora_A.default": 6},
    "convolutions": {f"{layer}.lora_A.default": 4 for layer in (0, 5, 7, 9)},
    "tokens": {"tokens.lora_embedding_A.default": 4}
    | {f"{layer}.lora_A.default": 4 for layer in ("expand", "reduce", "hidden", "outputs")},
}
"""The groups of each; a convolution in groups has no adapter."""


@pytest.mark.parametrize("kind", MODELS)
def test_law_2_for_ranks_and_their_factor_is_that_of_the_full_rank(kind: str) -> None:
    build, inputs, adapter = MODELS[kind]
    model = with_adapters(build(), adapter, 0).eval()
    plan = ChannelPlan.trace(model, inputs[:2], uncut=uncut_tensors(model))
    assert {group.name: group.size for group in plan.groups} == RANKS[kind]
    randomise(model, torch.Generator().manual_seed(3))
    for seed in range(4):
        mask = random_mask(plan, seed)
        small = plan.extract(model, mask)
        held = held_entries(plan, mask, dict(model.state_dict()))
        zeroed = with_adapters(build(), adapter, 0).eval()
        zeroed.load_state_dict({key: value * held[key] for key, value in model.state_dict().items()})
        torch.testing.assert_close(small(inputs), zeroed(inputs), rtol=1e-4, atol=1e-5)
        scalings = [each.scaling["default"] for each in small.modules() if hasattr(each, "scaling")]
        assert scalings == [adapter.alpha / adapter.rank] * len(RANKS[kind])
        frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
        assert all(small.get_parameter(name).shape == model.get_parameter(name).shape for name in frozen)


def test_what_is_frozen_or_has_an_adapter_is_left_whole_and_the_reason_is_plain() -> None:
    adapted = with_adapters(network(), Adapter(rank=3, targets=("2",), train_also=("2", "4")), 0)
    plan = ChannelPlan.trace(adapted, torch.randn(2, 6), uncut=uncut_tensors(adapted))
    assert [group.name for group in plan.groups] == ["2.lora_A.default"]
    assert plan.unprunable == {
        "0": "left whole, since '0.weight' is frozen",
        "2.base_layer": "left whole, since '2.base_layer.weight' has an adapter",
    }
    assert uncut_tensors(network()) == {}


def test_heads_that_are_left_whole_are_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each proof runs the whole model twice in double precision."""
    proved: list[str] = []
    fault_of = proof.fault_of

    def watched(model: nn.Module, forward: proof.Forward, example: object, groups: ChannelGroups) -> str | None:
        proved.extend(group.name for group in groups.groups)
        return fault_of(model, forward, example, groups)

    monkeypatch.setattr(proof, "fault_of", watched)
    model = Transformer(11, 5, 8, [CausalBlock(8, 2, 16)], 3)
    plain = ChannelPlan.trace(model, TOKENS)
    assert {"blocks.0.query", "blocks.0.expand"} <= {group.name for group in plain.groups} <= set(proved)
    proved.clear()
    with_adapters(model, Adapter(rank=4, targets=("*.query", "*.value")), 0)
    plan = ChannelPlan.trace(model, TOKENS, uncut=uncut_tensors(model))
    ranks = {"blocks.0.query.lora_A.default", "blocks.0.value.lora_A.default"}
    assert {group.name for group in plan.groups} == set(proved) == ranks
    assert plan.unprunable["blocks.0.expand"] == "left whole, since 'blocks.0.expand.weight' is frozen"


def test_hidden_units_of_a_head_that_is_trained_are_cut_beside_ranks() -> None:
    settings = tiny_settings(
        "method.name=magnitude", "model.adapter={rank: 4, targets: ['2'], train_also: ['6', '8']}"
    )
    plan = build_scenario(settings).workload.plan
    assert {group.name: group.size for group in plan.groups} == {"2.lora_A.default": 4, "6": 16}


def test_keep_whole_holds_beside_adapters() -> None:
    adapted = ("method.name=magnitude", ADAPTED)
    plan = build_scenario(tiny_settings(*adapted, "model.keep_whole=['6.*']")).workload.plan
    assert [group.name for group in plan.groups] == ["2.lora_A.default"]
    with pytest.raises(SettingError, match=r"model\.keep_whole='9' matches no layer"):
        build_scenario(tiny_settings(*adapted, "model.keep_whole=['9']"))


def test_attention_of_pytorch_gets_no_adapter_since_it_would_not_be_read() -> None:
    adapted = with_adapters(Reader(), Adapter(rank=2), 0)
    assert not any(name.startswith("attention.") and "lora" in name for name in adapted.state_dict())
    with pytest.raises(SettingError, match=r"model\.adapter\.targets='attention\.\*' matches no linear layer"):
        with_adapters(Reader(), Adapter(targets=("attention.*",)), 0)


def test_without_peft_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        SettingError, match=r"model\.adapter needs the library peft; .*pip install 'raysim\[adapters\]'"
    ):
        build_scenario(tiny_settings(ADAPTED))


def test_frozen_weights_travel_down_once_and_never_up() -> None:
    scenario = build_scenario(tiny_settings("method.name=magnitude", ADAPTED))
    costs, whole = scenario.costs, Mask.whole(scenario.workload.plan)
    trained = sum(each.numel() for each in scenario.workload.model.parameters() if each.requires_grad)
    assert costs.dense.gradient_bytes == 4 * trained
    assert costs.dense.model_bytes - costs.frozen_bytes(whole) == 4 * trained
    assert sum(costs.sent_entries(whole).values()) == trained
    before, after = scenario.workload.model.state_dict(), state_after(scenario, 2).params
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {name for name, each in scenario.workload.model.named_parameters() if each.requires_grad}


DENSE = tuple(f"population.tiers.{tier}.keep_ratio=1.0" for tier in range(4))
CURVATURE = ("method.name=ca-hfp", "method.score=curvature", "method.warmup_rounds=1", ADAPTED, *DENSE)


def first_of(plan: ChannelPlan, ratio: float) -> list[bool]:
    return plan.keep_top({group.name: -np.arange(group.size) for group in plan.groups}, ratio).kept.tolist()


@pytest.mark.parametrize("steps", ["one", "several"])
def test_where_curvatures_of_a_tie_the_first_ranks_stay_and_later_others_may(steps: str) -> None:
    """B is zero at first, so that A has no gradient in the first step: after one step all ranks have a score of 0."""
    more = ("training.batch_size=10000",) if steps == "one" else ("training.batch_size=5",)
    scenario = build_scenario(tiny_settings(*CURVATURE, *more))
    plan = scenario.workload.plan
    view = view_for(scenario, state_after(scenario, 1), round=2)
    scores, _ = rank(scenario.method, view)
    kept = keep_top(plan, scores, 0.5).kept.tolist()
    assert scores.shape == (8,)
    if steps == "one":
        assert not scores.any()
        assert kept == first_of(plan, 0.5)
    else:
        assert len(set(scores.tolist())) == 8
        assert kept != first_of(plan, 0.5)


def test_magnitude_ranks_by_the_norms_of_a_which_are_drawn() -> None:
    scenario = build_scenario(tiny_settings("method.name=magnitude", ADAPTED))
    plan, params = scenario.workload.plan, scenario.workload.model.state_dict()
    norms = {group.name: params[f"{group.name}.weight"].abs().flatten(1).sum(1).numpy() for group in plan.groups}
    planned = plan_round(scenario)
    assert min(planned.cohort.keep_ratios) < 1
    for ratio, mask in zip(planned.cohort.keep_ratios, planned.masks, strict=True):
        assert mask.kept.tolist() == plan.keep_top(norms, float(ratio)).kept.tolist()


def test_the_weight_gradient_of_frozen_layers_costs_nothing() -> None:
    plain = build_scenario(tiny_settings("method.name=fedavg")).costs.dense
    last = build_scenario(tiny_settings("method.name=fedavg", "model.train_only=['8']")).costs.dense
    forward = build_scenario(tiny_settings("method.name=fedavg")).costs.forward_flops
    weights = 2 * build_scenario(tiny_settings("method.name=fedavg")).workload.model[8].weight.numel()
    assert last.train_flops == forward + weights < plain.train_flops
    assert last.gradient_bytes < plain.gradient_bytes


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.train_only=['lst.*']", r"model.train_only='lst.\*' matches no layer or parameter; nearest: "),
        (
            "model.adapter={targets: ['x']}",
            "model.adapter.targets='x' matches no linear layer, convolution or embedding",
        ),
        ("model.adapter={train_also: ['x']}", "model.adapter.train_also='x' matches no layer or parameter"),
        ("model.adapter={rank: 0}", "model.adapter.rank"),
        ("model={name: cnn, train_only: ['8'], adapter: {}}", "train_only is not allowed with adapter"),
    ],
)
def test_names_that_match_nothing_are_refused(override: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        build_scenario(tiny_settings(override))


def test_a_layer_trains_all_of_its_parameters_and_a_pattern_names_some() -> None:
    model = network()
    train_only(model, ["2", "4.bias"], "model.train_only")
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["2.weight", "2.bias", "4.bias"]


def test_a_shared_parameter_is_trained_by_any_of_its_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    train_only(model, ["2"], "model.train_only")
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["0.weight", "2.bias"]
    train_only(model, ["1"], "model.train_only")
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["1.weight", "1.bias"]


def test_the_norms_that_replace_frozen_ones_are_frozen() -> None:
    residual = "model={name: resnet, options: {depth: 8}, train_only: ['classifier']}"
    built = build_scenario(tiny_settings("method.name=magnitude", "method.normalization=group", residual))
    trained = {name for name, each in built.workload.model.named_parameters() if each.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}
    assert any(isinstance(layer, nn.GroupNorm) for layer in built.workload.model.modules())


def test_the_update_of_frozen_tensors_is_zero_without_any_memory_of_its_own() -> None:
    adapted = with_adapters(network(), Adapter(rank=4), 0)
    start = {key: value.clone() for key, value in adapted.state_dict().items()}
    with torch.no_grad():
        adapted[0].lora_B["default"].weight += 1.0
    workload = SimpleNamespace(plan=SimpleNamespace(outputs=None))
    moved = update.difference(SimpleNamespace(model=adapted, start=start, workload=workload))
    for key, value in adapted.state_dict().items():
        assert torch.equal(moved[key], value.double() - start[key].double())
        is_frozen = not adapted.get_parameter(key).requires_grad
        assert (moved[key].untyped_storage().nbytes() == 8) == is_frozen


def test_adapters_of_encoder_layers_count_in_evaluation_as_in_training() -> None:
    """PyTorch's fused encoder layer would read the frozen weights alone."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = with_adapters(nn.Sequential(layer, nn.Linear(8, 3)), Adapter(rank=4), 0)
    randomise(model, torch.Generator().manual_seed(1))
    inputs = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(inputs), model.train()(inputs), rtol=1e-4, atol=1e-4)


def test_layers_whose_adapter_could_not_be_trained_get_none() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 3))
    adapted = [name for name, _ in with_adapters(model, Adapter(), 0).named_parameters() if "lora_A" in name]
    assert sorted(adapted) == [f"{layer}.lora_A.default.weight" for layer in ("0.linear1", "0.linear2", "1")]
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))
    adapted = [name for name, _ in with_adapters(grouped, Adapter(rank=2), 0).named_parameters() if "lora_A" in name]
    assert adapted == ["1.lora_A.default.weight"]
