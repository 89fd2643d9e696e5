"""Adapters and frozen parameters: what is trained, cut, sent and counted."""

import numpy as np
import pytest
import torch
from torch import nn

from raysim.core.errors import SettingError
from raysim.models.adapters import Adapter, with_adapters
from raysim.models.trained_part import train_only
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.proof import randomise
from raysim.simulation.build import build_scenario
from tests.conftest import tiny_settings
from tests.oracles import held_entries, random_mask
from tests.planned import state_after

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


def test_law_2_for_ranks_and_their_factor_is_that_of_the_full_rank() -> None:
    model = with_adapters(network(), Adapter(rank=6, alpha=3.0, targets=("0", "2")), 0).eval()
    base = [name for name, _ in model.named_modules() if "lora_A" not in name and name]
    plan = ChannelPlan.trace(model, torch.randn(2, 6), [each for each in base if each.endswith(("base_layer", "4"))])
    assert [(group.name, group.size) for group in plan.groups] == [("0.lora_A.default", 6), ("2.lora_A.default", 6)]
    randomise(model, torch.Generator().manual_seed(3))
    inputs = torch.randn(4, 6)
    for seed in range(4):
        mask = random_mask(plan, seed)
        small = plan.extract(model, mask)
        held = held_entries(plan, mask, dict(model.state_dict()))
        zeroed = network()
        zeroed = with_adapters(zeroed, Adapter(rank=6, alpha=3.0, targets=("0", "2")), 0).eval()
        zeroed.load_state_dict({key: value * held[key] for key, value in model.state_dict().items()})
        torch.testing.assert_close(small(inputs), zeroed(inputs), rtol=1e-4, atol=1e-5)
        assert small[0].scaling["default"] == 0.5


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


def test_ranks_are_chosen_by_budgets_and_tie_in_round_1() -> None:
    """B is zero, so that curvature times weights squared is as well: of equal scores the first ranks stay."""
    scenario = build_scenario(
        tiny_settings("method.name=ca-hfp", "method.score=curvature", "method.warmup_rounds=0", ADAPTED)
    )
    plan = scenario.workload.plan
    assert all(group.name.endswith("lora_A.default") for group in plan.groups)
    assert set(plan.unprunable.values()) == {"of a model with adapters, their ranks alone are cut"}
    ranks = [int(np.flatnonzero(plan.keep_top({g.name: np.zeros(4) for g in plan.groups}, 0.5).kept).max())]
    assert ranks == [5]


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
            "model.adapter.targets='x' matches no linear layer or convolution",
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
